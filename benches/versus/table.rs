//! Figures as they come in, and the one table made of them.

use std::fmt::{self, Display};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::design::{Better, Bound, Of, Row};

/// One figure of one round.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) value: f64,
    /// To what the row is compared with, in the same round.
    pub(crate) ratio: Option<f64>,
}

/// All figures of one contender in one row.
pub(crate) struct Series {
    pub(crate) row: &'static Row,
    /// Size, state or number of threads, where a row has several.
    pub(crate) variant: String,
    pub(crate) contender: &'static str,
    pub(crate) samples: Vec<Sample>,
}

/// Median and extremes.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Aim,
    Must,
    Below,
}

#[derive(Default)]
pub(crate) struct Report {
    pub(crate) series: Vec<Series>,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
}

impl Report {
    pub(crate) fn add(
        &mut self,
        row: &'static Row,
        contender: &'static str,
        round: u32,
        value: f64,
        ratio: Option<f64>,
    ) {
        self.add_variant(row, "", contender, Sample { round, value, ratio });
    }

    pub(crate) fn add_variant(
        &mut self,
        row: &'static Row,
        variant: &str,
        contender: &'static str,
        sample: Sample,
    ) {
        match self.series.iter_mut().find(|s| s.is(row, variant, contender)) {
            Some(series) => series.samples.push(sample),
            None => {
                let variant = variant.to_owned();
                self.series.push(Series { row, variant, contender, samples: vec![sample] });
            }
        }
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(crate) fn find(&self, row: &'static Row, variant: &str, contender: &str) -> Option<&Series> {
        self.series.iter().find(|s| s.is(row, variant, contender))
    }

    /// The value of a contender in a round.
    pub(crate) fn value(&self, row: &'static Row, contender: &str, round: u32) -> Option<f64> {
        let series = self.find(row, "", contender)?;
        series.samples.iter().rev().find(|s| s.round == round).map(|s| s.value)
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> Result<()> {
        let [must, aim, reached] = ["must", "aim", "reached"];
        writeln!(
            out,
            "{:<4} {:<72} {:<12} {:>7} {:>10} {:>21}  {:<24} {:<14} {must:>6} {aim:>6}  {reached}",
            "row", "what", "who", "unit", "median", "min - max", "ratio [min - max]", "to"
        )?;
        let mut last = String::new();
        for series in &self.series {
            let row = series.row;
            let what = series.what();
            let (id, what) = if what == last { ("", String::new()) } else { (row.id, what) };
            if !what.is_empty() {
                last.clone_from(&what);
            }
            let values = series.values();
            let (ratio, to) = match series.ratios() {
                Some(r) => {
                    (format!("{} [{} - {}]", Short(r.median), Short(r.min), Short(r.max)), row.against)
                }
                None => (String::new(), ""),
            };
            let range = format!("{} - {}", Short(values.min), Short(values.max));
            let (must, aim, verdict) = match series.bound() {
                Some(b) => (b.must.to_string(), b.aim.to_string(), series.verdict()),
                None => (String::new(), String::new(), None),
            };
            let verdict = match verdict {
                Some(Verdict::Aim) => "ok, aim reached",
                Some(Verdict::Must) => "ok",
                Some(Verdict::Below) => "BELOW",
                None => "-",
            };
            writeln!(
                out,
                "{id:<4} {what:<72} {:<12} {:>7} {:>10} {range:>21}  {ratio:<24} {to:<14} {must:>6} {aim:>6}  {verdict}",
                series.contender,
                row.unit,
                Short(values.median).to_string(),
            )?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        Ok(())
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let series: Vec<Value> = self.series.iter().map(Series::to_json).collect();
        let all = json!({ "rows": series, "notes": self.notes });
        Ok(std::fs::write(path, serde_json::to_string_pretty(&all)?)?)
    }
}

impl Series {
    fn is(&self, row: &'static Row, variant: &str, contender: &str) -> bool {
        std::ptr::eq(self.row, row) && self.variant == variant && self.contender == contender
    }

    /// What was measured, in words.
    pub(crate) fn what(&self) -> String {
        if self.variant.is_empty() {
            self.row.what.to_owned()
        } else {
            format!("{}, {}", self.row.what, self.variant)
        }
    }

    pub(crate) fn values(&self) -> Spread {
        let mut values: Vec<f64> = self.samples.iter().map(|s| s.value).collect();
        Spread::of(&mut values)
    }

    pub(crate) fn ratios(&self) -> Option<Spread> {
        let mut ratios: Vec<f64> = self.samples.iter().filter_map(|s| s.ratio).collect();
        (!ratios.is_empty()).then(|| Spread::of(&mut ratios))
    }

    pub(crate) fn bound(&self) -> Option<&'static Bound> {
        self.row.bounds.iter().find(|b| b.contender == self.contender)
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let bound = self.bound()?;
        let reached = match bound.of {
            Of::Value => self.values().median,
            Of::Ratio => self.ratios()?.median,
        };
        let passes = |limit: f64| match self.row.better {
            Better::More => reached >= limit,
            Better::Less => reached <= limit,
        };
        Some(match (passes(bound.aim), passes(bound.must)) {
            (true, _) => Verdict::Aim,
            (false, true) => Verdict::Must,
            (false, false) => Verdict::Below,
        })
    }

    fn to_json(&self) -> Value {
        let verdict = self.verdict().map(|v| match v {
            Verdict::Aim => "aim",
            Verdict::Must => "must",
            Verdict::Below => "below",
        });
        let samples: Vec<Value> = self
            .samples
            .iter()
            .map(|s| json!({ "round": s.round, "value": s.value, "ratio": s.ratio }))
            .collect();
        json!({
            "row": self.row.id,
            "what": self.row.what,
            "variant": self.variant,
            "contender": self.contender,
            "unit": self.row.unit,
            "value": self.values().to_json(),
            "ratio": self.ratios().map(Spread::to_json),
            "ratio_to": self.row.against,
            "must": self.bound().map(|b| b.must),
            "aim": self.bound().map(|b| b.aim),
            "verdict": verdict,
            "rounds": samples,
        })
    }
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: &mut [f64]) -> Self {
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        let median = f64::midpoint(values[last / 2], values[last.div_ceil(2)]);
        Self { median, min: values[0], max: values[last] }
    }

    fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// A number with three digits that count.
pub(crate) struct Short(pub(crate) f64);

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        let text = match size {
            _ if size >= 1e7 => format!("{:.1}M", self.0 / 1e6),
            _ if size >= 1e6 => format!("{:.2}M", self.0 / 1e6),
            _ if size >= 1e4 => format!("{:.0}k", self.0 / 1e3),
            _ if size >= 1e3 => format!("{:.2}k", self.0 / 1e3),
            _ if size >= 100.0 => format!("{:.0}", self.0),
            _ if size >= 10.0 => format!("{:.1}", self.0),
            _ => format!("{:.2}", self.0),
        };
        f.pad(&text)
    }
}
