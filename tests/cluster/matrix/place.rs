//! Where one life is gone through: a namespace, an AWS, an operator behind two proxies that count.

use super::lives::Life;
use super::product::Product;
use crate::support::World;
use crate::support::api_proxy::ApiProxy;
use crate::support::aws_proxy::AwsProxy;
use crate::support::operator::Operator;
use crate::support::tap::Tap;
use std::sync::Arc;

/// A place of a run's own.
pub struct Place {
    /// The life.
    pub life: Life,
    /// Whose.
    pub product: Product,
    /// What counts the requests, and lets the fault happen.
    pub tap: Arc<Tap>,
    /// Between the operator and AWS.
    pub aws: AwsProxy,
    api: ApiProxy,
    /// The rest of the world. The last field: it is dropped last.
    pub world: World,
}

/// An operator that came after one that was killed, and the doors that it came in by.
pub struct Next {
    _operator: Operator,
    _aws: AwsProxy,
    _api: ApiProxy,
}

impl Place {
    /// A new one, with an operator that is ready.
    pub async fn new(life: Life, product: Product) -> Self {
        let mut world = World::new().await;
        world.leave_namespace();
        let tap = Tap::new(life.polls());
        let api = world.tapped_api_proxy(Some(tap.clone())).await;
        let aws = AwsProxy::start(&world.aws, Some(tap.clone())).await;
        product.breaks(&aws);
        let place = Self { life, product, tap, aws, api, world };
        place.tap.holds(place.operator(&place.aws, &place.api).await);
        place
    }

    /// Starts the next operator, which is not killed.
    pub async fn next(&self) -> Next {
        let (aws, api) = (self.aws.next_door().await, self.api.next_door(self.world.file("kubeconfig")).await);
        Next { _operator: self.operator(&aws, &api).await, _aws: aws, _api: api }
    }

    async fn operator(&self, aws: &AwsProxy, api: &ApiProxy) -> Operator {
        let settings = self.world.settings().via(api).env("AWS_ENDPOINT_URL", aws.endpoint());
        // Longer than what a machine under load takes: a call that is given up is another life.
        let settings = settings.flag("--aws-timeout", "2s").flag("--recovery-grace", "7100ms");
        self.world.operator_with(&settings).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tap.end();
    }
}
