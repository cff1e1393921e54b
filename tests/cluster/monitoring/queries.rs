//! PromQL, as far as it has to be read here: which metrics and labels a query names. What it finds, promtool says.

use std::collections::{BTreeMap, BTreeSet};

/// What Prometheus adds to each series by where it was scraped.
const TARGET: [&str; 4] = ["namespace", "pod", "job", "instance"];
/// A value that is another one with each release.
const FREE: [&str; 1] = ["version"];
/// What Grafana puts in the place of its variables.
const VARIABLES: [(&str, &str); 5] = [
    ("$__rate_interval", "5m"),
    ("$__range", "1h"),
    ("$proxy_namespace", ".*"),
    ("$namespace", ".*"),
    ("$price", "1.2"),
];

type Labels = BTreeMap<String, String>;

/// The series of some scrapes.
pub struct Served {
    series: BTreeSet<String>,
    /// The values of each label of each metric.
    metrics: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Served {
    /// `scrapes`: in Prometheus' text format.
    pub fn of(scrapes: &[String]) -> Self {
        let mut served = Self { series: BTreeSet::new(), metrics: BTreeMap::new() };
        for line in scrapes.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#')) {
            let (text, _) = line.rsplit_once(' ').expect("a series and a value");
            let (name, labels) = series(text);
            let values = served.metrics.entry(name.to_owned()).or_default();
            for (label, value) in &labels {
                values.entry(label.clone()).or_default().insert(value.clone());
            }
            let target = TARGET.map(|label| format!("{label}=\"x\"")).join(", ");
            let own = labels.iter().map(|(label, value)| format!(", {label}=\"{value}\"")).collect::<String>();
            served.series.insert(format!("{name}{{{target}{own}}}"));
        }
        served
    }

    /// All of them, with the labels that a scrape adds.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.series.iter()
    }

    /// Says why there is no such series.
    pub fn has(&self, name: &str, labels: &Labels) -> Result<(), String> {
        let Some(values) = self.metrics.get(name) else { return Err(format!("{name} is not served")) };
        let own = || labels.iter().filter(|(label, _)| !TARGET.contains(&label.as_str()));
        let named: BTreeSet<_> = own().map(|(label, _)| label).collect();
        if named != values.keys().collect() {
            return Err(format!("{name} has the labels {:?}, not {named:?}", values.keys()));
        }
        for (label, value) in own().filter(|(label, _)| !FREE.contains(&label.as_str())) {
            if !values[label].contains(value) {
                return Err(format!("{name} is not served with {label}={value:?}"));
            }
        }
        Ok(())
    }
}

/// Name and labels of `name{label="value", …}`.
pub fn series(text: &str) -> (&str, Labels) {
    let Some((name, labels)) = text.split_once('{') else { return (text, Labels::new()) };
    let mut found = Labels::new();
    let mut parts = labels.trim_end_matches('}').split('"');
    while let (Some(label), Some(value)) = (parts.next(), parts.next()) {
        found.insert(label.trim_matches([',', ' ', '=']).to_owned(), value.to_owned());
    }
    (name, found)
}

/// A query, without Grafana's variables.
pub struct Query {
    expression: String,
    legend: String,
}

impl Query {
    /// `legend`: names labels as `{{label}}`.
    pub fn of(expression: &str, legend: &str) -> Self {
        let expression = VARIABLES.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
        assert!(!expression.contains('$'), "{expression} has a variable that is not known here");
        Self { expression, legend: legend.to_owned() }
    }

    /// For promtool.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// Says which metric, label or value of it is not served.
    pub fn check(&self, served: &Served) -> Result<(), String> {
        let words = |text: &str| -> Vec<String> {
            let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            text.split(|c| !is_of_word(c)).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let ours = |word: &String| word.starts_with("opentunnel_") || word.starts_with("process_");
        let mut labels = BTreeMap::<String, BTreeSet<String>>::new();
        for name in words(&self.expression).into_iter().filter(ours) {
            let Some(of) = served.metrics.get(&name) else { return Err(format!("{name} is not served")) };
            for (label, values) in of {
                labels.entry(label.clone()).or_default().extend(values.iter().cloned());
            }
        }
        if labels.is_empty() && !words(&self.expression).iter().any(ours) {
            return Err(format!("{} names no metric", self.expression));
        }
        let is_label = |label: &String| labels.contains_key(label) || TARGET.contains(&label.as_str());
        for grouping in [" by (", "without (", "ignoring ("] {
            for named in self.expression.split(grouping).skip(1).flat_map(|rest| words(upto(rest, ")"))) {
                if !is_label(&named) {
                    return Err(format!("{named} is no label in {}", self.expression));
                }
            }
        }
        for named in self.legend.split("{{").skip(1).flat_map(|rest| words(upto(rest, "}}"))) {
            if !is_label(&named) {
                return Err(format!("the legend names {named}, which is no label in {}", self.expression));
            }
        }
        // Of a regular expression each alternative: one that is wrong would go unnoticed among others.
        for matchers in self.expression.split('{').skip(1) {
            let (_, matchers) = series(&format!("_{{{}", upto(matchers, "}")));
            for (label, value) in matchers {
                let label = label.trim_end_matches(['!', '=', '~']).to_owned();
                if TARGET.contains(&label.as_str()) {
                    continue;
                }
                let Some(values) = labels.get(&label) else {
                    return Err(format!("{label} is no label in {}", self.expression));
                };
                if let Some(wrong) = value.split('|').find(|value| !values.contains(*value)) {
                    return Err(format!("{label} is never {wrong:?} in {}", self.expression));
                }
            }
        }
        Ok(())
    }
}

/// What stands before `end`.
fn upto<'a>(text: &'a str, end: &str) -> &'a str {
    text.split(end).next().unwrap_or_default()
}
