//! Reading a request's JSON: what does not have the member's type is a
//! SerializationException, before any constraint is looked at.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The members of one JSON object. `null` counts as absent; members that the service
/// does not know are ignored, as AWS does.
pub(crate) struct Members<'a>(&'a Map<String, Value>);

impl<'a> Members<'a> {
    /// The members of a request's body. An empty body is an empty object.
    pub(crate) fn of(body: &'a Value) -> Result<Self, ApiError> {
        structure(body)
    }

    fn present(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.present(name).map(text).transpose()
    }

    /// A 32-bit integer, as the service model's `integer` is.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i32>, ApiError> {
        let read = |value: &Value| match value.as_i64().map(i32::try_from) {
            Some(Ok(number)) => Ok(number),
            _ => Err(mismatch(value, "Integer")),
        };
        self.present(name).map(read).transpose()
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| mismatch(value, "Boolean"));
        self.present(name).map(read).transpose()
    }

    pub(crate) fn structure(&self, name: &str) -> Result<Option<Members<'a>>, ApiError> {
        self.present(name).map(structure).transpose()
    }

    pub(crate) fn structures(&self, name: &str) -> Result<Option<Vec<Members<'a>>>, ApiError> {
        self.list(name, structure)
    }

    pub(crate) fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>, ApiError> {
        self.list(name, text)
    }

    fn list<T>(&self, name: &str, read: impl Fn(&'a Value) -> Result<T, ApiError>) -> Result<Option<Vec<T>>, ApiError> {
        let Some(value) = self.present(name) else {
            return Ok(None);
        };
        let items = value.as_array().ok_or_else(|| mismatch(value, "List"))?;
        items.iter().map(read).collect::<Result<_, _>>().map(Some)
    }
}

fn text(value: &Value) -> Result<&str, ApiError> {
    value.as_str().ok_or_else(|| mismatch(value, "String"))
}

fn structure(value: &Value) -> Result<Members<'_>, ApiError> {
    value.as_object().map(Members).ok_or_else(|| mismatch(value, "Structure"))
}

/// In the words of AWS's own JSON reader.
fn mismatch(value: &Value, wanted: &str) -> ApiError {
    let found = match value {
        Value::Object(_) => "Start of structure or map found where not expected.",
        Value::Array(_) => "Start of list found where not expected",
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
    };
    ApiError::serialization(match value {
        Value::Object(_) | Value::Array(_) => found.to_owned(),
        _ => format!("{found} can not be converted to {wanted}"),
    })
}
