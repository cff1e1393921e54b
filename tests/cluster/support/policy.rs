//! Policies of a platform's team that change the token Secrets of a namespace: real MutatingAdmissionPolicies.

use super::LIMIT;
use super::namespace::Namespace;
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Secret};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What the policy does to each token Secret that is created or updated.
#[derive(Clone, Copy, Debug)]
pub enum Mutation {
    /// It sets the standard label `app.kubernetes.io/managed-by`.
    StampsManagedBy,
    /// It makes it immutable.
    MakesImmutable,
    /// It takes all annotations off.
    DropsAnnotations,
    /// It takes all labels off but its own.
    DropsLabels,
    /// It writes another value.
    RewritesRegion,
}

impl Mutation {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// In CEL.
    fn patch(self) -> &'static str {
        match self {
            Self::StampsManagedBy => {
                r#"JSONPatch{op: "add", path: "/metadata/labels/app.kubernetes.io~1managed-by", value: "platform"}"#
            }
            Self::MakesImmutable => r#"JSONPatch{op: "add", path: "/immutable", value: true}"#,
            Self::DropsAnnotations => r#"JSONPatch{op: "remove", path: "/metadata/annotations"}"#,
            Self::DropsLabels => {
                r#"JSONPatch{op: "add", path: "/metadata/labels", value: {"app.kubernetes.io/managed-by": "platform"}}"#
            }
            Self::RewritesRegion => r#"JSONPatch{op: "add", path: "/data/region", value: "eHg="}"#,
        }
    }

    /// Whether the JSON pointer of the patch needs what may not be there.
    fn condition(self) -> &'static str {
        match self {
            Self::StampsManagedBy => "has(object.metadata.labels)",
            Self::DropsAnnotations => "has(object.metadata.annotations)",
            Self::RewritesRegion => "has(object.data)",
            Self::MakesImmutable | Self::DropsLabels => "true",
        }
    }
}

impl Namespace {
    /// Returns once the policy has effect in this namespace. One policy serves all tests: it selects namespaces by a
    /// label.
    pub async fn under(&self, mutation: Mutation) {
        let (name, label) = (mutation.name(), format!("policy.example.com/{}", mutation.name()));
        let rule = json!({
            "apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE", "UPDATE"]
        });
        let policy = json!({
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [
                {"name": "tokens", "expression": "object.type == 'opentunnel.dev/tunnel-tokens'"},
                {"name": "possible", "expression": mutation.condition()},
            ],
            "mutations": [{
                "patchType": "JSONPatch", "jsonPatch": {"expression": format!("[{}]", mutation.patch())}
            }],
        });
        let binding = json!({
            "policyName": name, "matchResources": {"namespaceSelector": {"matchLabels": {&label: "on"}}},
        });
        self.apply_policy("MutatingAdmissionPolicy", &name, policy).await;
        self.apply_policy("MutatingAdmissionPolicyBinding", &name, binding).await;
        let before = self.trial().await;
        let labels = json!({"metadata": {"labels": {label: "on"}}});
        let namespaces: Api<KubeNamespace> = Api::all(self.client.clone());
        let patched = namespaces.patch(&self.name, &PatchParams::default(), &Patch::Merge(labels)).await;
        patched.expect("a namespace can be labelled");
        let deadline = Instant::now() + LIMIT;
        while self.trial().await == before {
            assert!(Instant::now() < deadline, "{mutation:?} has no effect");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether this Kubernetes has what [`World::under`] needs. Only one that KUBERNETES names may lack it, as 1.33 does.
    pub async fn has_mutating_policies(&self) -> bool {
        let list = self.client.list_api_group_resources("admissionregistration.k8s.io/v1").await;
        let has = list.expect("discovery").resources.iter().any(|r| r.name == "mutatingadmissionpolicies");
        if !has {
            assert!(
                std::env::var_os("KUBERNETES").is_some(),
                "the Kubernetes of the tests has no MutatingAdmissionPolicy"
            );
            eprintln!("SKIPPED, nothing was tried: this Kubernetes has no MutatingAdmissionPolicy of version v1");
        }
        has
    }

    async fn apply_policy(&self, kind: &str, name: &str, spec: Value) {
        let resource = ApiResource {
            group: "admissionregistration.k8s.io".into(),
            version: "v1".into(),
            api_version: "admissionregistration.k8s.io/v1".into(),
            kind: kind.into(),
            plural: format!("{}s", kind.to_lowercase()).replace("policys", "policies"),
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let object = json!({
            "apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, "spec": spec
        });
        let applied = api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(object)).await;
        applied.expect("a policy can be applied");
    }

    /// What becomes of a token Secret.
    async fn trial(&self) -> Value {
        let secret = json!({
            "type": "opentunnel.dev/tunnel-tokens",
            "metadata": {"name": "trial", "labels": {"a": "b"}, "annotations": {"a": "b"}},
            "stringData": {"region": "x"},
        });
        let secret: Secret = serde_json::from_value(secret).expect("a Secret");
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let made = self.secrets().create(&params, &secret).await.expect("a Secret can be made");
        let metadata = &made.metadata;
        json!([made.data, made.immutable, metadata.labels, metadata.annotations])
    }
}
