//! The two text formats of metrics, and which of them a scraper asks for.
//!
//! Both have the same series with the same values; what stands around them differs. The formats are Prometheus's 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>) and OpenMetrics 1.0
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::fmt::{self, Write as _};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4, which every collector reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// How much a client wants a format: how specific the range is that names it, and its quality in thousandths.
type Wish = (u8, u16);

impl Format {
    /// The format that an `Accept` header prefers (RFC 9110 section 12.5.1). Several such lines are joined by commas. A
    /// client without a preference gets Prometheus's format, as from Prometheus's own libraries; so does one that accepts
    /// neither, because an answer is more use to it than a refusal.
    pub fn accepted_by(accept: &str) -> Self {
        let (mut prometheus, mut open_metrics) = (Wish::default(), Wish::default());
        for range in accept.split(',') {
            let mut parameters = range.split(';').map(str::trim);
            let media = parameters.next().unwrap_or_default().to_ascii_lowercase();
            let (mut thousandths, mut version) = (1000, None);
            for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match &*name.trim().to_ascii_lowercase() {
                    "q" => thousandths = quality(value),
                    "version" => version = Some(value),
                    _ => {}
                }
            }
            let wants = |format: &mut Wish, specific| *format = (*format).max((specific, thousandths));
            match (&*media, version) {
                // 0.0.1 was the draft's number for the same text.
                ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => {
                    wants(&mut open_metrics, 3);
                }
                ("text/plain", None | Some("0.0.4")) => wants(&mut prometheus, 3),
                ("application/*", _) => wants(&mut open_metrics, 2),
                ("text/*", _) => wants(&mut prometheus, 2),
                ("*/*", _) => {
                    wants(&mut open_metrics, 1);
                    wants(&mut prometheus, 1);
                }
                _ => {}
            }
        }
        // Of two that are wanted as much, the one that was asked for by its name.
        let by_quality = |(specific, thousandths): Wish| (thousandths, specific);
        match by_quality(open_metrics) > by_quality(prometheus) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// `0.5` as 500; what is no such number is as good as nothing said.
fn quality(text: &str) -> u16 {
    match text.parse::<f64>() {
        Ok(quality) if (0.0..=1.0).contains(&quality) => (quality * 1000.0).round() as u16,
        _ => 1000,
    }
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FamilyKind {
    Info,
    Counter,
    Gauge,
    Histogram,
}

/// The unit of a family's values, where its name has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Bytes,
}

impl Unit {
    fn as_str(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
        }
    }
}

/// A label of a series.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'a> {
    pub(super) name: &'static str,
    pub(super) value: &'a str,
}

/// A label of this name and value.
pub(super) fn label<'a>(name: &'static str, value: &'a str) -> Label<'a> {
    Label { name, value }
}

/// Appends labels to those in `text`, as they are exposed.
pub(super) fn write_labels(labels: &[Label<'_>], text: &mut String) {
    for Label { name, value } in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
}

/// A sample's value.
pub(super) trait SampleValue: Copy {
    fn write(self, text: &mut String) -> fmt::Result;
}

impl SampleValue for u32 {
    fn write(self, text: &mut String) -> fmt::Result {
        write!(text, "{self}")
    }
}

impl SampleValue for u64 {
    fn write(self, text: &mut String) -> fmt::Result {
        write!(text, "{self}")
    }
}

impl SampleValue for f64 {
    /// The shortest text that reads as the same number, with a point or an exponent in it.
    fn write(self, text: &mut String) -> fmt::Result {
        match self {
            f64::INFINITY => text.write_str("+Inf"),
            _ => write!(text, "{self:?}"),
        }
    }
}

/// Metrics as they are written down.
#[derive(Debug)]
pub(super) struct Text {
    format: Format,
    text: String,
    /// Name of the family that is being written, its unit included.
    family: String,
}

impl Text {
    pub(super) fn new(format: Format) -> Self {
        Self { format, text: String::new(), family: String::new() }
    }

    /// The whole, when no family follows.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// Begins a family; its samples follow.
    pub(super) fn family(
        &mut self,
        name: &str,
        kind: FamilyKind,
        unit: Option<&Unit>,
        help: &str,
    ) -> fmt::Result {
        self.family.clear();
        self.family.push_str(name);
        if let Some(unit) = unit {
            self.family.push('_');
            self.family.push_str(unit.as_str());
        }
        // OpenMetrics names a family without the suffix of its samples, Prometheus's format with it.
        let (suffix, kind) = match (self.format, kind) {
            (Format::Prometheus, FamilyKind::Info) => ("_info", "gauge"),
            (Format::Prometheus, FamilyKind::Counter) => ("_total", "counter"),
            (Format::OpenMetrics, FamilyKind::Info) => ("", "info"),
            (Format::OpenMetrics, FamilyKind::Counter) => ("", "counter"),
            (_, FamilyKind::Gauge) => ("", "gauge"),
            (_, FamilyKind::Histogram) => ("", "histogram"),
        };
        let Self { format, text, family } = self;
        write!(text, "# HELP {family}{suffix} ")?;
        for c in help.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '"' if *format == Format::OpenMetrics => text.push_str("\\\""),
                c => text.push(c),
            }
        }
        writeln!(text, "\n# TYPE {family}{suffix} {kind}")?;
        match unit {
            Some(unit) if *format == Format::OpenMetrics => {
                writeln!(text, "# UNIT {family} {}", unit.as_str())
            }
            _ => Ok(()),
        }
    }

    /// A sample of the family; `suffix` is what follows the family's name, and `labels` are as [`super::totals::key`] writes them.
    pub(super) fn sample(&mut self, suffix: &str, labels: &str, value: impl SampleValue) -> fmt::Result {
        self.text.push_str(&self.family);
        self.text.push_str(suffix);
        if !labels.is_empty() {
            self.text.push('{');
            self.text.push_str(labels);
            self.text.push('}');
        }
        self.text.push(' ');
        value.write(&mut self.text)?;
        self.text.push('\n');
        Ok(())
    }

    /// One bucket of a histogram: how many were no longer than its bound, in seconds.
    pub(super) fn bucket(&mut self, bound: f64, labels: &str, count: u64) -> fmt::Result {
        let Self { text, family, .. } = self;
        write!(text, "{family}_bucket{{le=\"")?;
        bound.write(text)?;
        let separator = if labels.is_empty() { "" } else { "," };
        writeln!(text, "\"{separator}{labels}}} {count}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_is_accepted_most() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_2 =
            "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for accept in [
            prometheus_3,
            prometheus_2,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "application/openmetrics-text, */*",
            "text/plain;q=0.2, application/openmetrics-text;q=0.201",
            "application/*, text/*;q=0",
        ] {
            assert_eq!(Format::accepted_by(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html, text/*;q=0.1",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;q=0, */*",
            "application/openmetrics-text; version=2.0.0, text/plain;q=0.1",
            "application/json",
            ";;=,,q=x",
        ] {
            assert_eq!(Format::accepted_by(accept), Format::Prometheus, "{accept}");
        }
    }

    #[test]
    fn each_format_names_families_as_it_does() {
        let written = |format| {
            let mut text = Text::new(format);
            text.family("a", FamilyKind::Counter, Some(&Unit::Seconds), "A \"b\" \\.")
                .expect("a string takes it");
            text.sample("_total", "x=\"1\"", 1.5).expect("a string takes it");
            text.family("b", FamilyKind::Info, None, "B").expect("a string takes it");
            text.sample("_info", "v=\"1\"", 1_u64).expect("a string takes it");
            text.family("c", FamilyKind::Gauge, None, "C").expect("a string takes it");
            text.sample("", "", f64::INFINITY).expect("a string takes it");
            text.finish()
        };
        let samples = ["a_seconds_total{x=\"1\"} 1.5\n", "b_info{v=\"1\"} 1\n", "c +Inf\n"];
        assert_eq!(
            written(Format::OpenMetrics),
            format!(
                "# HELP a_seconds A \\\"b\\\" \\\\.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n{}\
                 # HELP b B\n# TYPE b info\n{}# HELP c C\n# TYPE c gauge\n{}# EOF\n",
                samples[0], samples[1], samples[2]
            )
        );
        assert_eq!(
            written(Format::Prometheus),
            format!(
                "# HELP a_seconds_total A \"b\" \\\\.\n# TYPE a_seconds_total counter\n{}\
                 # HELP b_info B\n# TYPE b_info gauge\n{}# HELP c C\n# TYPE c gauge\n{}",
                samples[0], samples[1], samples[2]
            )
        );
    }
}
