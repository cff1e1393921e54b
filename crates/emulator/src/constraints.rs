//! The constraints of the service model (API version 2018-10-05), and how AWS words
//! their violations. Lengths count Unicode code points.

use unicode_properties::{GeneralCategoryGroup as Group, UnicodeGeneralCategory};

use crate::error::ApiError;

/// A pattern of the model: its text, for messages, and what it means.
#[derive(Clone, Copy)]
struct Pattern(&'static str, fn(&str) -> bool);

/// What a string member must be.
pub(crate) struct Text {
    pattern: Option<Pattern>,
    min: usize,
    max: usize,
}

/// Where the model puts the length into the pattern, a wrong length is a violation of
/// the pattern and of nothing else.
const ANY_LENGTH: usize = usize::MAX;

pub(crate) const DESCRIPTION: Text = Text {
    pattern: Some(Pattern(r"[^\p{C}]{1,2048}", |value| {
        has_length(value, 1, 2048) && value.chars().all(|c| c.general_category_group() != Group::Other)
    })),
    min: 0,
    max: ANY_LENGTH,
};

pub(crate) const TUNNEL_ID: Text =
    Text { pattern: Some(Pattern(r"[a-zA-Z0-9_\-+=:]{1,128}", is_tunnel_id)), min: 0, max: ANY_LENGTH };

pub(crate) const NEXT_TOKEN: Text = Text {
    pattern: Some(Pattern(r"[a-zA-Z0-9_=-]{1,4096}", |value| has_length(value, 1, 4096) && consists_of(value, "_=-"))),
    min: 0,
    max: ANY_LENGTH,
};

/// Of a thing and of a service.
pub(crate) const NAME: Text = Text {
    pattern: Some(Pattern(r"[a-zA-Z0-9:_-]+", |value| !value.is_empty() && consists_of(value, ":_-"))),
    min: 1,
    max: 128,
};

pub(crate) const TAG_KEY: Text = Text { pattern: Some(TAG_PATTERN), min: 1, max: 128 };

pub(crate) const TAG_VALUE: Text = Text { pattern: Some(TAG_PATTERN), min: 0, max: 256 };

/// The model's `AmazonResourceName`, which requests carry. (A `tunnelArn` in an answer
/// may be longer.)
pub(crate) const RESOURCE_ARN: Text = Text { pattern: None, min: 1, max: 1011 };

const TAG_PATTERN: Pattern = Pattern(r"^([\p{L}\p{Z}\p{N}_.:/=+\-@]*)$", |value| {
    value.chars().all(|c| {
        "_.:/=+-@".contains(c) || matches!(c.general_category_group(), Group::Letter | Group::Separator | Group::Number)
    })
});

/// `[a-zA-Z0-9_\-+=:]{1,128}`
pub(crate) fn is_tunnel_id(value: &str) -> bool {
    has_length(value, 1, 128) && consists_of(value, "_-+=:")
}

fn has_length(value: &str, min: usize, max: usize) -> bool {
    (min..=max).contains(&value.chars().count())
}

fn consists_of(value: &str, and: &str) -> bool {
    value.chars().all(|c| c.is_ascii_alphanumeric() || and.contains(c))
}

impl Text {
    /// What `value` violates, in the order in which AWS lists it.
    fn violations(&self, value: &str) -> Vec<String> {
        let length = value.chars().count();
        let mut violations = Vec::new();
        if let Some(Pattern(pattern, _)) = self.pattern.filter(|Pattern(_, matches)| !matches(value)) {
            violations.push(must_match(pattern));
        }
        if length < self.min {
            violations.push(must_have("length", "greater", self.min));
        }
        if length > self.max {
            violations.push(must_have("length", "less", self.max));
        }
        violations
    }

    /// All that a list's member must be, said of a list one of whose members is not.
    fn of_members(&self) -> String {
        let mut all = vec![must_have("length", "less", self.max), must_have("length", "greater", self.min)];
        all.extend(self.pattern.map(|Pattern(pattern, _)| must_match(pattern)));
        format!("Member must satisfy constraint: [{}]", all.join(", "))
    }
}

fn must_match(pattern: &str) -> String {
    format!("Member must satisfy regular expression pattern: {pattern}")
}

fn must_have(what: &str, than: &str, limit: impl std::fmt::Display) -> String {
    format!("Member must have {what} {than} than or equal to {limit}")
}

/// Collects a request's violations: AWS names them all in one message.
#[derive(Default)]
pub(crate) struct Violations(Vec<String>);

impl Violations {
    fn add(&mut self, value: impl std::fmt::Display, path: &str, constraint: &str) {
        self.0.push(format!("Value {value} at '{path}' failed to satisfy constraint: {constraint}"));
    }

    /// A required member that is absent.
    pub(crate) fn missing(&mut self, path: &str) {
        self.add("null", path, "Member must not be null");
    }

    pub(crate) fn text(&mut self, path: &str, value: &str, must: &Text) {
        for violation in must.violations(value) {
            self.add(format_args!("'{value}'"), path, &violation);
        }
    }

    /// An optional string.
    pub(crate) fn optional(&mut self, path: &str, value: Option<&str>, must: &Text) {
        if let Some(value) = value {
            self.text(path, value, must);
        }
    }

    /// A required string; empty where it is absent.
    pub(crate) fn required(&mut self, path: &str, value: Option<&str>, must: &Text) -> String {
        match value {
            Some(value) => self.text(path, value, must),
            None => self.missing(path),
        }
        value.unwrap_or_default().to_owned()
    }

    /// A list of strings.
    pub(crate) fn texts(&mut self, path: &str, values: &[&str], min: usize, max: usize, must: &Text) {
        let shown = format!("'[{}]'", values.join(", "));
        self.length(path, &shown, values.len(), min, max);
        if values.iter().any(|value| !must.violations(value).is_empty()) {
            self.add(shown, path, &must.of_members());
        }
    }

    /// A list's length.
    pub(crate) fn length(&mut self, path: &str, shown: &str, length: usize, min: usize, max: usize) {
        if length < min {
            self.add(shown, path, &must_have("length", "greater", min));
        }
        if length > max {
            self.add(shown, path, &must_have("length", "less", max));
        }
    }

    /// An integer.
    pub(crate) fn range(&mut self, path: &str, value: i32, min: i32, max: i32) {
        if value < min {
            self.add(format_args!("'{value}'"), path, &must_have("value", "greater", min));
        }
        if value > max {
            self.add(format_args!("'{value}'"), path, &must_have("value", "less", max));
        }
    }

    /// A word that is none of the enum's.
    pub(crate) fn not_one_of(&mut self, path: &str, value: &str, words: &[&str]) {
        let constraint = format!("Member must satisfy enum value set: [{}]", words.join(", "));
        self.add(format_args!("'{value}'"), path, &constraint);
    }

    /// All of them as one ValidationException.
    pub(crate) fn none(self) -> Result<(), ApiError> {
        let errors = match self.0.len() {
            0 => return Ok(()),
            1 => "1 validation error".to_owned(),
            n => format!("{n} validation errors"),
        };
        Err(ApiError::validation(format!("{errors} detected: {}", self.0.join("; "))))
    }
}
