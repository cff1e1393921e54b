//! The CustomResourceDefinition: what the types say, and what derive cannot say.

use super::Tunnel;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// The CustomResourceDefinition, as `crds/tunnels.yaml` has it.
///
/// Three things cannot be said by derive: an Option is a field that may be left out, not one that
/// may be null (a null would be stored, and a rule's `has()` would see it); `spec` may be left out
/// as a whole; and a status that was never written says so by `observedGeneration: -1`, so that
/// kstatus (Flux, Argo CD) reads InProgress until the first write.
pub fn definition() -> CustomResourceDefinition {
    let mut crd = Tunnel::crd();
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        no_nulls(root);
        // kubectl refuses an object without a required field in a List, though the default would set it.
        root.required = None;
        for (name, default) in
            [("spec", serde_json::json!({})), ("status", serde_json::json!({"observedGeneration": -1}))]
        {
            if let Some(schema) = root.properties.as_mut().and_then(|p| p.get_mut(name)) {
                schema.default = Some(JSON(default));
            }
        }
    }
    crd
}

/// Takes `nullable` out of a schema and all that it holds.
fn no_nulls(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(no_nulls);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        no_nulls(items);
    }
}

/// Fields of this version's schema that an installed CRD lacks, such as `status.tokenGeneration`: the
/// API server would drop them silently.
pub fn missing_fields(installed: &CustomResourceDefinition) -> Vec<String> {
    fn compare(ours: &JSONSchemaProps, theirs: Option<&JSONSchemaProps>, path: &str, missing: &mut Vec<String>) {
        for (name, schema) in ours.properties.iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match theirs.and_then(|t| t.properties.as_ref()).and_then(|p| p.get(name)) {
                Some(theirs) => compare(schema, Some(theirs), &path, missing),
                None => missing.push(path),
            }
        }
    }
    let schema = |crd: &CustomResourceDefinition| {
        let version = crd.spec.versions.iter().find(|v| v.name == "v1alpha1")?;
        version.schema.as_ref()?.open_api_v3_schema.clone()
    };
    let mut missing = Vec::new();
    if let Some(ours) = schema(&definition()) {
        compare(&ours, schema(installed).as_ref(), "", &mut missing);
    }
    missing
}
