//! Plots as SVG: the roads side by side with every round's value as a dot, the datapaths alone, and the daemons' memory.
//! Pure.

use std::fmt::Write;

use crate::bare::{self, Way};
use crate::grid;
use crate::render::number;
use crate::report::{MEMORY_GOAL, Metric, Report, Road, column};

const WIDTH: f64 = 430.0;
/// What a panel has above its bars and below them.
const FRAME: f64 = 37.0;
const LABEL: f64 = 132.0;
const BAR: f64 = 20.0;
const STEP: f64 = 25.0;
const ROOM: f64 = 64.0;
const STYLE: &str = "<style>text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.v{font-size:11px}</style>";

/// A bar with what is written before and after it, and the single values.
struct Bar {
    label: String,
    value: Option<f64>,
    dots: Vec<f64>,
    color: &'static str,
}

/// One panel for each thing measured.
pub(crate) fn roads(report: &Report) -> String {
    let shown = [
        Metric::Download,
        Metric::Upload,
        Metric::Ping,
        Metric::BusyPing,
        Metric::Connects,
        Metric::ConnectsAtOnce,
        Metric::CpuDownload,
        Metric::CpuUpload,
        Metric::Ready,
        Metric::FirstByte,
    ];
    let panels = shown.iter().map(|metric| {
        let (title, unit) = metric.title();
        let bars = Road::ALL.map(|road| Bar {
            label: road.title().to_owned(),
            value: report.medians.get(&road).and_then(|all| all.get(metric)).copied(),
            dots: column(&report.rounds, road, *metric).into_iter().flatten().collect(),
            color: match road {
                Road::Tpx => "#1b6ac9",
                Road::Floor => "#6fa8e8",
                Road::Kubectl => "#8a8f98",
                Road::Direct => "#c8ccd2",
            },
        });
        panel(&format!("{title}, {unit}"), &bars, None)
    });
    page(panels.collect(), 2, Road::ALL.len())
}

/// One panel for each thing measured without a tunnel.
pub(crate) fn bare(report: &Report) -> String {
    let panels = bare::Metric::ALL.into_iter().map(|metric| {
        let (title, unit) = metric.title();
        let bars = Way::ALL.map(|way| Bar {
            label: way.title().to_owned(),
            value: bare::middle(&report.bare, way, metric),
            dots: grid::column(&report.bare, way, metric).into_iter().flatten().collect(),
            color: match way {
                Way::Express => "#1b6ac9",
                Way::Floor => "#6fa8e8",
                Way::Loopback => "#c8ccd2",
            },
        });
        panel(&format!("{title}, {unit}"), &bars, None)
    });
    page(panels.collect(), 2, Way::ALL.len())
}

/// Idle and after the load, with the goal.
pub(crate) fn memory(report: &Report) -> String {
    let mib = |memory: Option<crate::procs::Memory>| memory.map(|memory| memory.rss as f64 / 1024.0);
    let panels = report.daemons.iter().map(|daemon| {
        let bar = |label: &str, value, color| Bar { label: label.to_owned(), value, dots: Vec::new(), color };
        let bars = [bar("idle", mib(daemon.idle), "#1b6ac9"), bar("after the load", mib(daemon.loaded), "#8a8f98")];
        panel(&format!("{}, resident MiB", daemon.title()), &bars, Some(MEMORY_GOAL))
    });
    // The goal's line has a word below it.
    page(panels.collect(), 1, 3)
}

/// Panels of at most `bars` bars.
fn page(panels: Vec<String>, columns: usize, bars: usize) -> String {
    let rows = panels.len().div_ceil(columns);
    let each = FRAME + STEP * bars as f64;
    let (width, height) = (WIDTH * columns as f64, each * rows as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         {STYLE}\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = (WIDTH * (index % columns) as f64, each * (index / columns) as f64);
        writeln!(svg, "<g transform=\"translate({x} {y})\">{panel}</g>").ok();
    }
    svg + "</svg>\n"
}

fn panel(title: &str, bars: &[Bar], line: Option<f64>) -> String {
    let values = bars.iter().flat_map(|bar| bar.dots.iter().copied().chain(bar.value)).chain(line);
    let most = values.fold(0.0, f64::max);
    let x = |value: f64| if most > 0.0 { LABEL + (WIDTH - LABEL - ROOM) * value / most } else { LABEL };
    let mut svg = format!("<text class=\"t\" x=\"8\" y=\"20\">{title}</text>");
    for (index, bar) in bars.iter().enumerate() {
        let y = 30.0 + STEP * index as f64;
        let (middle, text) = (y + BAR / 2.0, y + BAR / 2.0 + 4.0);
        write!(svg, "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>", LABEL - 6.0, bar.label).ok();
        let end = bar.value.map_or(LABEL, x);
        write!(
            svg,
            "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>",
            end - LABEL,
            bar.color
        )
        .ok();
        for dot in &bar.dots {
            write!(svg, "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"2\" fill=\"#000\" fill-opacity=\".5\"/>", x(*dot))
                .ok();
        }
        let after = bar.dots.iter().map(|dot| x(*dot)).fold(end, f64::max) + 6.0;
        write!(svg, "<text class=\"v\" x=\"{after:.1}\" y=\"{text}\">{}</text>", number(bar.value)).ok();
    }
    if let Some(line) = line {
        let (at, bottom) = (x(line), 30.0 + STEP * bars.len() as f64);
        write!(svg, "<path d=\"M{at:.1} 26V{bottom}\" stroke=\"#c22\" stroke-dasharray=\"4 3\"/>").ok();
        write!(
            svg,
            "<text class=\"v\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">goal: under {line}</text>",
            bottom + 12.0
        )
        .ok();
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: Option<f64>, dots: &[f64]) -> Bar {
        Bar { label: "x".into(), value, dots: dots.to_vec(), color: "#000" }
    }

    #[test]
    fn the_greatest_value_fills_the_panel_and_the_others_follow() {
        let full = WIDTH - LABEL - ROOM;
        let svg = panel("t", &[bar(Some(50.0), &[]), bar(Some(100.0), &[])], None);
        assert!(svg.contains(&format!("width=\"{full:.1}\"")) && svg.contains(&format!("width=\"{:.1}\"", full / 2.0)));
    }

    #[test]
    fn nothing_measured_is_an_empty_bar() {
        let svg = panel("t", &[bar(None, &[])], None);
        assert!(svg.contains("width=\"0.0\"") && svg.contains(">-</text>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
