//! The figures as pictures.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Result;
use crate::ageing::Step;
use crate::engine::Engine;
use crate::floor::Floor;
use crate::peers;
use crate::table::{Report, Series, Spread};

const WIDTH: u32 = 1000;
/// Height of one row, and of what is above and below them.
const ROW: u32 = 44;
const MARGIN: u32 = 150;
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(215, 215, 215);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Who is drawn, each in a colour of its own.
fn contenders() -> impl Iterator<Item = (&'static str, RGBColor)> {
    const COLOURS: [RGBColor; 6] = [
        RGBColor(31, 119, 180),
        RGBColor(23, 190, 207),
        RGBColor(214, 39, 40),
        RGBColor(255, 127, 14),
        RGBColor(148, 103, 189),
        RGBColor(44, 160, 44),
    ];
    [Engine::NAME, Engine::MMAP].into_iter().chain(peers::NAMES).zip(COLOURS)
}

/// Ratios to the floor: one line for each row, a dot for each contender, a bar from the worst round to the best.
/// Nothing is drawn when there are none.
pub(crate) fn ratios(report: &Report, path: &Path) -> Result<()> {
    let drawn: Vec<(&Series, Spread)> = report
        .series
        .iter()
        .filter(|s| s.row.against == Floor::NAME && s.contender != Floor::NAME)
        .filter_map(|s| Some((s, s.ratios()?)))
        .collect();
    let mut labels: Vec<String> = Vec::new();
    for (series, _) in &drawn {
        let label = label(series);
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    if labels.is_empty() {
        return Ok(());
    }
    let least = drawn.iter().map(|(_, r)| r.min).fold(0.5, f64::min) / 1.2;
    let most = drawn.iter().map(|(_, r)| r.max).fold(2.0, f64::max) * 1.2;

    let root = SVGBackend::new(path, (WIDTH, MARGIN + ROW * labels.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Throughput over raw-4k (right is better)", ("sans-serif", 20).into_font().color(&INK))
        .margin(16)
        .x_label_area_size(36)
        .y_label_area_size(420)
        .build_cartesian_2d((least..most).log_scale(), 0.0..labels.len() as f64)?;
    let name = |y: &f64| labels.get(labels.len().wrapping_sub(1 + *y as usize)).cloned().unwrap_or_default();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(labels.len() + 1)
        .y_label_offset(-(ROW as i32) / 2)
        .y_label_formatter(&name)
        .x_label_formatter(&|x| format!("{x}x"))
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .draw()?;
    let parity = [(1.0, 0.0), (1.0, labels.len() as f64)];
    chart.draw_series(LineSeries::new(parity, INK.stroke_width(2)))?;
    for (index, (contender, colour)) in contenders().enumerate() {
        let mine = drawn.iter().filter(|(s, _)| s.contender == contender);
        let places = mine.map(|(series, ratio)| {
            let from_top = labels.iter().position(|l| *l == label(series)).unwrap_or(0);
            let y = (labels.len() - from_top) as f64 - 0.15 - 0.14 * index as f64;
            (*ratio, y)
        });
        let places: Vec<(Spread, f64)> = places.collect();
        let bars =
            places.iter().map(|(r, y)| PathElement::new([(r.min, *y), (r.max, *y)], colour.stroke_width(2)));
        chart.draw_series(bars)?;
        let dots = places.iter().map(|(r, y)| Circle::new((r.median, *y), 4, colour.filled()));
        chart
            .draw_series(dots)?
            .label(contender)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    legend(&mut chart)?;
    Ok(root.present()?)
}

fn label(series: &Series) -> String {
    format!("{} {}", series.row.id, series.what())
}

/// Throughput and runs while a pool ages. Nothing is drawn when nothing has aged.
pub(crate) fn ageing(steps: &[Step], path: &Path) -> Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    let root = SVGBackend::new(path, (WIDTH, 800)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(400);
    let curve = |of: fn(&Step) -> f64| steps.iter().map(|s| (s.passes, of(s))).collect();
    curves(
        &upper,
        "Random overwrites and a flush on a pool 85 % full, op/s",
        [(Engine::NAME, curve(|s| s.engine)), (Floor::NAME, curve(|s| s.floor))],
    )?;
    curves(
        &lower,
        "Runs written at once, KiB",
        [("longest", curve(|s| s.longest_run / 1024.0)), ("mean", curve(|s| s.mean_run / 1024.0))],
    )?;
    Ok(root.present()?)
}

fn curves(area: &Area<'_>, caption: &str, lines: [(&str, Vec<(f64, f64)>); 2]) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let passes = points().map(|p| p.0).fold(0.0, f64::max);
    let most = points().map(|p| p.1).fold(0.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 20).into_font().color(&INK))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..passes, 0.0..most)?;
    chart
        .configure_mesh()
        .x_desc("times overwritten")
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .draw()?;
    for ((name, points), (_, colour)) in lines.into_iter().zip(contenders().step_by(2)) {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    legend(&mut chart)
}

fn legend<'a, X, Y>(chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>) -> Result<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE)
        .border_style(FAINT)
        .draw()?;
    Ok(())
}
