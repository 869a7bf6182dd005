//! Figures by workload, metric and server, and their forms: a table and JSON.

use std::fmt::Write as _;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
    /// Context, not a result.
    Neither,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// A metric of a workload: the values of all rounds, by server in the order of
/// [`Report::servers`].
#[derive(Clone, Debug)]
struct Row {
    workload: String,
    metric: Metric,
    values: Vec<Vec<f64>>,
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) servers: Vec<String>,
    /// What was run on: pairs of name and value.
    pub(crate) environment: Vec<(String, String)>,
    rows: Vec<Row>,
}

impl Report {
    /// An empty report on these servers.
    pub(crate) const fn new(servers: Vec<String>, environment: Vec<(String, String)>) -> Self {
        Self {
            servers,
            environment,
            rows: Vec::new(),
        }
    }

    /// Adds one round's value.
    pub(crate) fn add(&mut self, workload: &str, metric: Metric, server: usize, value: f64) {
        let known = self
            .rows
            .iter()
            .position(|row| row.workload == workload && row.metric == metric);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row {
                workload: workload.to_owned(),
                metric,
                values: vec![Vec::new(); self.servers.len()],
            });
            self.rows.len() - 1
        });
        if let Some(values) = self
            .rows
            .get_mut(index)
            .and_then(|row| row.values.get_mut(server))
        {
            values.push(value);
        }
    }

    /// The table that people read.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, here and below.
        for (name, value) in &self.environment {
            let _ = writeln!(text, "{name}: {value}");
        }
        let _ = writeln!(
            text,
            "Values are medians of the rounds (lowest-highest). The ratio says how many times better \
             the last server is than the first."
        );
        let mut workload = "";
        for row in &self.rows {
            if row.workload != workload {
                workload = &row.workload;
                let _ = write!(text, "\n{workload:<34}");
                for server in &self.servers {
                    let _ = write!(text, "{server:>30}");
                }
                let _ = writeln!(
                    text,
                    "{:>9}",
                    if self.servers.len() > 1 { "ratio" } else { "" }
                );
            }
            let name = format!("  {} [{}]", row.metric.name, row.metric.unit);
            let _ = write!(text, "{name:<34}");
            for values in &row.values {
                let _ = write!(text, "{:>30}", cell(values));
            }
            let ratio = row
                .ratio()
                .map_or_else(String::new, |ratio| format!("{ratio:.1}x"));
            let _ = writeln!(text, "{ratio:>9}");
        }
        text
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> String {
        let environment: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{}: {}", quoted(name), quoted(value)))
            .collect();
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|row| row.json(&self.servers))
            .collect();
        format!(
            "{{\"environment\": {{{}}},\n \"results\": [\n  {}\n]}}\n",
            environment.join(", "),
            rows.join(",\n  ")
        )
    }
}

impl Row {
    /// How many times better the last server's median is than the first's.
    fn ratio(&self) -> Option<f64> {
        if self.values.len() < 2 {
            return None;
        }
        let (first, last) = (median(self.values.first()?)?, median(self.values.last()?)?);
        let (over, under) = match self.metric.better {
            Better::Higher => (last, first),
            Better::Lower => (first, last),
            Better::Neither => return None,
        };
        (under > 0.0).then_some(over / under)
    }

    fn json(&self, servers: &[String]) -> String {
        let values: Vec<String> = servers
            .iter()
            .zip(&self.values)
            .map(|(server, values)| {
                let values: Vec<String> =
                    values.iter().map(|value| format!("{value:.3}")).collect();
                format!("{}: [{}]", quoted(server), values.join(", "))
            })
            .collect();
        let ratio = self
            .ratio()
            .map_or_else(|| "null".to_owned(), |ratio| format!("{ratio:.3}"));
        format!(
            "{{\"workload\": {}, \"metric\": {}, \"unit\": {}, \"values\": {{{}}}, \"ratio\": {ratio}}}",
            quoted(&self.workload),
            quoted(self.metric.name),
            quoted(self.metric.unit),
            values.join(", ")
        )
    }
}

/// The median, and the spread when there is one.
fn cell(values: &[f64]) -> String {
    let Some(middle) = median(values) else {
        return "-".to_owned();
    };
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() == 1 {
        number(middle)
    } else {
        format!(
            "{} ({}-{})",
            number(middle),
            number(lowest),
            number(highest)
        )
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(upper, *sorted.get(sorted.len() / 2 - 1)?))
}

/// Three digits that count, no more.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Metric = Metric {
        name: "rate",
        unit: "ops/s",
        better: Better::Higher,
    };
    const TIME: Metric = Metric {
        name: "p50",
        unit: "us",
        better: Better::Lower,
    };

    #[test]
    fn ratios_say_how_much_better_whichever_way_is_better() {
        let mut report = Report::new(vec!["a".into(), "b".into()], Vec::new());
        for value in [1.0, 9.0, 2.0] {
            report.add("set", RATE, 0, value);
            report.add("set", RATE, 1, value * 4.0);
            report.add("set", TIME, 0, value * 3.0);
            report.add("set", TIME, 1, value);
        }
        let ratios: Vec<_> = report.rows.iter().map(Row::ratio).collect();
        assert_eq!(ratios, [Some(4.0), Some(3.0)]);
        assert!(
            report.table().contains("8.00 (4.00-36.0)"),
            "{}",
            report.table()
        );
        assert!(report.json().contains("\"b\": [4.000, 36.000, 8.000]"));
    }

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(quoted("a\"b\\\n"), "\"a\\\"b\\\\\\u000a\"");
    }
}
