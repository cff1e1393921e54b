//! Where one life is gone through: a namespace, an AWS, an operator behind two proxies that count.

use super::lives::{Ending, Life};
use super::product::Product;
use crate::support::World;
use crate::support::api_proxy::ApiProxy;
use crate::support::aws_proxy::AwsProxy;
use crate::support::namespace::status;
use crate::support::operator::{Operator, Settings};
use crate::support::tap::Tap;
use opentunnel_api::Tunnel;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

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
    /// Between the operator and the API server.
    pub api: ApiProxy,
    settings: Settings,
    /// The generation of the tokens when the life begins: under load another one than the first.
    generation: AtomicI64,
    /// The rest of the world. The last field: it is dropped last.
    pub world: World,
}

/// The doors that an operator came in by after one that was killed.
pub struct Next {
    aws: AwsProxy,
    api: ApiProxy,
}

impl Place {
    /// A new one, with an operator that is ready.
    pub async fn new(life: Life, product: Product) -> Self {
        Self::on(World::new().await, life, product).await
    }

    /// The same in a world.
    pub async fn on(world: World, life: Life, product: Product) -> Self {
        let settings = world.settings();
        Self::with(world, settings, life, product).await
    }

    /// The same with an operator that leads, and one that stands by, whose requests nothing is done to.
    pub async fn with_two(life: Life) -> (Self, Operator) {
        let world = World::new().await;
        let settings = world.electing().await;
        let place = Self::with(world, settings, life, Product::Whole).await;
        let second = place.world.operator_with(&place.in_place(place.settings.clone())).await;
        (place, second)
    }

    async fn with(mut world: World, settings: Settings, life: Life, product: Product) -> Self {
        world.leave_namespace();
        let tap = Tap::new(life.polls());
        let api = world.tapped_api_proxy(Some(tap.clone())).await;
        let aws = AwsProxy::start(&world.aws, Some(tap.clone())).await;
        product.breaks(&aws);
        let place = Self { life, product, tap, aws, api, settings, generation: AtomicI64::new(1), world };
        place.tap.holds(place.operator(&place.aws, &place.api).await);
        place
    }

    /// What its life brings is counted from the Tunnel as it is now.
    pub fn begins_with(&self, tunnel: &Tunnel) {
        self.generation.store(status(tunnel).token_generation.unwrap_or(1), Ordering::Relaxed);
    }

    /// How its life ends.
    pub fn ending(&self) -> Ending {
        match self.life.ending() {
            Ending::Ready(generation) => Ending::Ready(generation - 1 + self.generation.load(Ordering::Relaxed)),
            ending => ending,
        }
    }

    /// Starts the next operator. `by`: the doors that the one before it came in by.
    pub async fn next(&self, by: Option<&Next>) -> Next {
        let (aws, api) = by.map_or((&self.aws, &self.api), |next| (&next.aws, &next.api));
        let (aws, api) = (aws.next_door().await, api.next_door(self.world.file("kubeconfig")).await);
        self.tap.holds(self.operator(&aws, &api).await);
        Next { aws, api }
    }

    async fn operator(&self, aws: &AwsProxy, api: &ApiProxy) -> Operator {
        let settings = self.settings.clone().via(api).env("AWS_ENDPOINT_URL", aws.endpoint());
        self.world.operator_with(&self.in_place(settings)).await
    }

    fn in_place(&self, settings: Settings) -> Settings {
        // Longer than what a machine under load takes: a call that is given up is another life.
        settings.flag("--aws-timeout", "3s").flag("--recovery-grace", "8100ms")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tap.end();
    }
}
