//! Whether the API server would take a value, by the CRD's own schema: types, lengths, ranges, formats.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::Value;
use std::sync::OnceLock;

/// Checks `spec` or `status` of a Tunnel. A null is a field that is left out: so a merge patch takes it.
pub fn check(part: &str, value: &Value) -> Result<(), String> {
    static ROOT: OnceLock<JSONSchemaProps> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let version = opentunnel_api::definition().spec.versions.swap_remove(0);
        version.schema.and_then(|s| s.open_api_v3_schema).expect("a schema")
    });
    fits(&root.properties.as_ref().expect("properties")[part], value, part)
}

fn fits(schema: &JSONSchemaProps, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{at}: {what}"));
    let within = |count: usize, min: Option<i64>, max: Option<i64>| {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        min.is_none_or(|min| count >= min) && max.is_none_or(|max| count <= max)
    };
    if let Some(allowed) = &schema.enum_
        && !allowed.iter().any(|a| a.0 == *value)
    {
        return wrong("none of its values");
    }
    match (schema.type_.as_deref(), value) {
        (Some("string"), Value::String(text)) => {
            if !within(text.chars().count(), schema.min_length, schema.max_length) {
                return wrong("its length");
            }
            if schema.format.as_deref() == Some("date-time") && !is_rfc3339(text) {
                return wrong(&format!("{text:?} is no time"));
            }
        }
        (Some("integer"), Value::Number(number)) if number.is_i64() => {
            let number = number.as_i64().unwrap_or_default() as f64;
            if schema.minimum.is_some_and(|min| number < min) || schema.maximum.is_some_and(|max| number > max) {
                return wrong("its range");
            }
        }
        (Some("boolean"), Value::Bool(_)) => {}
        (Some("array"), Value::Array(items)) => {
            if !within(items.len(), schema.min_items, schema.max_items) {
                return wrong("its number of items");
            }
            if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
                for (n, item) in items.iter().enumerate() {
                    fits(schema, item, &format!("{at}[{n}]"))?;
                }
            }
            let keys = schema.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
            let key = |item: &Value| match schema.x_kubernetes_list_type.as_deref() {
                Some("set") => Some(vec![item.clone()]),
                Some("map") => Some(keys.iter().map(|key| item[key].clone()).collect()),
                _ => None,
            };
            let keys: Vec<_> = items.iter().filter_map(key).collect();
            if keys.iter().enumerate().any(|(n, key)| keys[..n].contains(key)) {
                return wrong("twice the same");
            }
        }
        (Some("object"), Value::Object(fields)) => {
            for name in schema.required.iter().flatten() {
                if fields.get(name).is_none_or(Value::is_null) {
                    return wrong(&format!("{name} is missing"));
                }
            }
            if !within(fields.len(), schema.min_properties, schema.max_properties) {
                return wrong("its number of fields");
            }
            let of_any = match &schema.additional_properties {
                Some(JSONSchemaPropsOrBool::Schema(of_any)) => Some(&**of_any),
                _ => None,
            };
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                match schema.properties.as_ref().and_then(|p| p.get(name)).or(of_any) {
                    Some(schema) => fits(schema, value, &format!("{at}.{name}"))?,
                    None => return wrong(&format!("no field {name}: it would be dropped")),
                }
            }
        }
        (type_, _) => return wrong(&format!("no {}", type_.unwrap_or("type"))),
    }
    Ok(())
}

/// As Go's time.RFC3339 has it: four digits of a year.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 20
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && (bytes[4], bytes[7], bytes[10]) == (b'-', b'-', b'T')
        && text.parse::<jiff::Timestamp>().is_ok()
}
