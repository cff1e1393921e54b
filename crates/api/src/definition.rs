//! The CustomResourceDefinition: what the types say, and what derive cannot say.

use super::Tunnel;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// The CustomResourceDefinition, as `crds/tunnels.yaml` has it.
///
/// Four things cannot be said by derive: an Option is a field that may be left out, not one that
/// may be null (a null would be stored, and a rule's `has()` would see it); `spec` may be left out
/// as a whole; a status that was never written says so by `observedGeneration: -1`, so that
/// kstatus (Flux) reads InProgress until the first write; and Flux and Argo CD do not prune the CRD,
/// which would delete every Tunnel of the cluster and so close their tunnels.
pub fn definition() -> CustomResourceDefinition {
    let mut crd = Tunnel::crd();
    let kept = [("kustomize.toolkit.fluxcd.io/prune", "disabled"), ("argocd.argoproj.io/sync-options", "Prune=false")];
    crd.metadata.annotations = Some(kept.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A line for each field, in the order of the schema.
    fn fields(schema: &JSONSchemaProps, path: &str, lines: &mut Vec<String>) {
        for (name, field) in schema.properties.iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let items = match &field.items {
                Some(JSONSchemaPropsOrArray::Schema(items)) => Some(items.as_ref()),
                _ => None,
            };
            let path = if items.is_some() { format!("{path}[]") } else { path };
            let required = schema.required.as_ref().is_some_and(|required| required.contains(name));
            let of = items.unwrap_or(field);
            let kind = of.format.clone().or_else(|| of.type_.clone()).unwrap_or_default();
            let mut words = field.description.clone().or_else(|| of.description.clone()).unwrap_or_default();
            words = words.split('\n').filter(|line| !line.starts_with("- `")).collect::<Vec<_>>().join(" ");
            if let Some(values) = of.enum_.as_ref().filter(|_| of.properties.is_none()) {
                let values: Vec<_> = values.iter().map(|v| format!("`{}`", v.0.as_str().unwrap_or_default())).collect();
                words += &format!(" One of {}.", values.join(", "));
            }
            if let Some(default) = &field.default {
                words += &format!(" Default: `{}`.", default.0.to_string().trim_matches('"'));
            }
            let words = words.replace('|', "\\|");
            let needed = if required { ", required" } else { "" };
            lines.push(format!("| `{path}` | {kind}{needed} | {} |", words.trim()));
            fields(of, &path, lines);
        }
    }

    /// docs/tunnel.md: what the schema says.
    fn reference() -> String {
        let crd = definition();
        let version = &crd.spec.versions[0];
        let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).expect("a schema");
        let mut text = format!(
            "# Reference of the Tunnel\n\nEvery field of `{}/{}`, as the CustomResourceDefinition has it. A test makes this page of the \
             schema.\n[The README](../README.md#the-tunnel) shows a manifest and says what the reasons mean.\n",
            crd.spec.group, version.name
        );
        for (part, title) in [("spec", "What is wanted: `spec`"), ("status", "What is: `status`")] {
            let part_schema = &schema.properties.as_ref().expect("properties")[part];
            let mut lines = Vec::new();
            fields(part_schema, part, &mut lines);
            text += &format!("\n## {title}\n\n| field | type | |\n|---|---|---|\n{}\n", lines.join("\n"));
        }
        let columns = version.additional_printer_columns.iter().flatten();
        let column = |c: &_| -> String {
            let c: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition =
                c;
            let wide = if c.priority.unwrap_or_default() > 0 { "`-o wide`" } else { "" };
            format!("| {} | `{}` | {wide} |", c.name, c.json_path)
        };
        let columns: Vec<_> = columns.map(column).collect();
        let selectable: Vec<_> =
            version.selectable_fields.iter().flatten().map(|f| format!("`{}`", f.json_path)).collect();
        text += &format!(
            "\n## What `kubectl get` shows\n\n| column | field | |\n|---|---|---|\n{}\n\n`--field-selector` takes {}.\n",
            columns.join("\n"),
            selectable.join(" and ")
        );
        text
    }

    #[test]
    fn the_reference_in_docs_is_what_the_schema_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tunnel.md");
        let text = reference();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &text).expect("docs/tunnel.md can be written");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "docs/tunnel.md is old: make docs");
    }
}
