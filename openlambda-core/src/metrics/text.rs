//! Prometheus' text format.

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;

use super::histogram::{BOUNDS, Histogram};

/// The `Content-Type` of [`Text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The type of a family of series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until a restart.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A [`Histogram`].
    Histogram,
}

/// Metrics in Prometheus' text format, family by family.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
}

impl Text {
    /// A text that begins with `ol_build_info`: the part of the platform, and its version.
    pub fn of(part: &str) -> Self {
        let mut text = Text::default();
        let help = "The part and its version; always 1.";
        let version = env!("CARGO_PKG_VERSION");
        text.family("ol_build_info", Kind::Gauge, help)
            .sample(&[("part", part), ("version", version)], 1);
        text
    }

    /// Begins a family. All its samples must be written before the next one begins.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.text, name }
    }

    /// A family of one sample without labels.
    pub fn counter(&mut self, name: &'static str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    /// A family of one sample without labels.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: u64) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// The samples of one family.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// One sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// A histogram's samples, seconds; none when nothing was counted.
    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let counts = histogram.buckets.each_ref().map(|count| count.load(Ordering::Relaxed));
        let count: u64 = counts.iter().sum();
        if count == 0 {
            return;
        }
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(counts) {
            below += count;
            let bound = (*bound as f64 / 1e9).to_string();
            self.line("_bucket", labels, Some(("le", &bound)), below);
        }
        self.line("_bucket", labels, Some(("le", "+Inf")), count);
        let sum = histogram.sum.load(Ordering::Relaxed) as f64 / 1e9;
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        more: Option<(&str, &str)>,
        value: impl Display,
    ) {
        let (text, name) = (&mut *self.text, self.name);
        let _ = write!(text, "{name}{suffix}");
        // A label without a value is the same as none.
        let labels = labels.iter().copied().chain(more).filter(|(_, value)| !value.is_empty());
        let mut between = '{';
        for (label, value) in labels {
            let _ = write!(text, "{between}{label}=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
            between = ',';
        }
        let _ = writeln!(text, "{} {value}", if between == ',' { "}" } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_its_bounds_are_inclusive() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 61_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut text = Text::default();
        text.family("h_seconds", Kind::Histogram, "H.").histogram(&[("a", "b")], &histogram);
        let text = text.finish();
        for line in [
            "# HELP h_seconds H.\n# TYPE h_seconds histogram\n",
            "h_seconds_bucket{a=\"b\",le=\"0.0001\"} 2\n",
            "h_seconds_bucket{a=\"b\",le=\"0.00025\"} 3\n",
            "h_seconds_bucket{a=\"b\",le=\"60\"} 3\n",
            "h_seconds_bucket{a=\"b\",le=\"+Inf\"} 4\n",
            "h_seconds_sum{a=\"b\"} 61.000201\nh_seconds_count{a=\"b\"} 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn labels_are_escaped_and_empty_ones_left_out() {
        let mut text = Text::default();
        text.family("m", Kind::Gauge, "M.").sample(&[("a", ""), ("b", "\"\\\n")], 1.5);
        assert!(text.finish().ends_with("m{b=\"\\\"\\\\\\n\"} 1.5\n"));
        let mut text = Text::default();
        text.gauge("m", "M.", 7);
        assert!(text.finish().ends_with("\nm 7\n"));
    }
}
