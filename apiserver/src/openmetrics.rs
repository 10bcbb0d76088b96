//! Figures as text in the OpenMetrics format, version 1.0
//! (<https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>).

use std::fmt::Write;

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gauge,
    /// Never becomes less, but for a new start.
    Counter,
    /// Always 1: its labels are what it tells.
    Info,
    /// One of several states: 1 for the one that holds, 0 for the others. Its label has the name of the family.
    StateSet,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Gauge | Self::StateSet => "",
            Self::Counter => "_total",
            Self::Info => "_info",
        }
    }
}

/// A value, and what it is of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: f64,
}

pub(crate) fn sample<const N: usize>(labels: [(&'static str, &str); N], value: f64) -> Sample {
    Sample { labels: labels.map(|(name, value)| (name, value.to_owned())).into(), value }
}

const UNITS: [&str; 2] = ["bytes", "seconds"];

/// Families of metrics, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    /// Adds a family, whose name ends with its unit if it has one; nothing when there are no samples of it.
    pub(crate) fn family(
        &mut self,
        kind: Kind,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let text = &mut self.0;
        // Writing to a String does not fail.
        let _ = writeln!(text, "# TYPE {name} {}", kind.name());
        if let Some(unit) = UNITS.iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(text, "# HELP {name} {}", escaped(help));
        for Sample { labels, value } in samples {
            let labels: Vec<String> =
                labels.into_iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(&value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{name}{}{labels} {value}", kind.suffix());
        }
    }

    pub(crate) fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_their_form_and_what_is_in_labels_stays_there() {
        let mut text = Text::default();
        text.family(Kind::Gauge, "a_bytes", "How much.", [sample([], 5.0), sample([("of", "x")], 0.5)]);
        text.family(Kind::Counter, "b_seconds", "How long.", [sample([("k", "a\"b\\c\nd 1")], 1e6)]);
        text.family(Kind::Info, "c", "What.", [sample([("version", "1")], 1.0)]);
        text.family(Kind::StateSet, "d", "Which.", [sample([("d", "on")], 1.0)]);
        text.family(Kind::Gauge, "e", "Nothing.", []);
        let expected = r#"# TYPE a_bytes gauge
# UNIT a_bytes bytes
# HELP a_bytes How much.
a_bytes 5
a_bytes{of="x"} 0.5
# TYPE b_seconds counter
# UNIT b_seconds seconds
# HELP b_seconds How long.
b_seconds_total{k="a\"b\\c\nd 1"} 1000000
# TYPE c info
# HELP c What.
c_info{version="1"} 1
# TYPE d stateset
# HELP d Which.
d{d="on"} 1
# EOF
"#;
        assert_eq!(text.finish(), expected);
    }
}
