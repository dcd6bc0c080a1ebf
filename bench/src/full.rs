//! What connect() costs with as many rules and open flows as there may be, next to an empty table. The datapath alone, as in
//! `bare`: where no tunnel is slower, a slower look-up shows.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tpx_bench::files;
use tpx_bench::said::{Connects, Held, Touched};
use tpx_bench::stats::{median, ratios};

use crate::grid::{Row, column};
use crate::lab::{Background, Lab, Part, ROOT};
use crate::report::Goal;
use crate::rounds::{Amount, Log};

/// Rules beside the one that is used.
const RULES: usize = 10_000;
/// Flows that are open meanwhile.
const FLOWS: usize = 20_000;
/// What connect() may cost then, as a multiple.
const MOST: f64 = 1.3;

/// Steered by the rule that all have, and used for nothing but what is timed: a port is sought for each destination apart.
const TIMED: &str = "10.99.0.1:7";
/// Steered by no rule: an address of *internet*.
const OTHER: &str = "203.0.113.80:7";

/// How full everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Table {
    Empty,
    Full,
}

impl Table {
    pub(crate) const ALL: [Table; 2] = [Table::Empty, Table::Full];

    pub(crate) fn title(self) -> String {
        match self {
            Table::Empty => "one rule, no flow".into(),
            Table::Full => format!("{RULES} rules, {FLOWS} flows"),
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Connect,
    Touch,
}

impl Metric {
    pub(crate) const ALL: [Metric; 2] = [Metric::Connect, Metric::Touch];

    /// What it is and its unit.
    pub(crate) fn title(self) -> (&'static str, &'static str) {
        match self {
            Metric::Connect => ("steered: connect, a byte there and back", "us"),
            Metric::Touch => ("not steered: connect() alone, of a datagram socket", "ns"),
        }
    }
}

/// One round: both once, in an order that turns.
pub(crate) fn round(lab: &Lab, amount: &Amount, round: usize, log: &mut Log) -> Result<Row<Table, Metric>> {
    let mut order = Table::ALL;
    order.rotate_left((round - 1) % Table::ALL.len());
    let mut row = Row::new();
    for table in order {
        log.go_on()?;
        let rules = format!("--rules={}", if table == Table::Full { RULES } else { 0 });
        let words = ["tpx-road", "express", &rules];
        let started = || lab.start(Part::Laptop, ROOT, &words, |line| (line == "ready").then_some(()));
        // Both end when they go out of scope, and what they changed with them.
        let Some((_road, ())) = log.try_on(&table.title(), "tpx-road", started) else { continue };
        let flows = if table == Table::Full { FLOWS } else { 0 };
        let Some(_flows) = log.try_on(&table.title(), "open flows", || hold(lab, flows)) else { continue };
        row.insert(table, measure(lab, amount, table, log));
    }
    Ok(row)
}

/// Flows to neighbours of the address that is timed: connections as far as one process may have files, associations beyond.
fn hold(lab: &Lab, flows: usize) -> Result<Vec<Background>> {
    let connections = flows.min(files::connections());
    let addresses: Vec<String> = (2..10).map(|n| format!("10.99.0.{n}:7")).collect();
    let mut held = Vec::new();
    for (count, kind) in [(connections, "--connections"), (flows - connections, "--associations")] {
        if count > 0 {
            held.push(open(lab, ROOT, &addresses, kind, count)?.0);
        }
    }
    Ok(held)
}

/// Opens flows and keeps them until what it returns is dropped.
pub(crate) fn open(
    lab: &Lab,
    user: &str,
    addresses: &[String],
    kind: &str,
    count: usize,
) -> Result<(Background, Held)> {
    let count_word = format!("{kind}={count}");
    let mut words = vec!["tpx-load", "hold", &count_word];
    words.extend(addresses.iter().map(String::as_str));
    let (background, held) = lab.start(Part::Laptop, user, &words, |line| serde_json::from_str::<Held>(line).ok())?;
    ensure!(held.flows() == count, "{} flows instead of {count}", held.flows());
    Ok((background, held))
}

fn measure(lab: &Lab, amount: &Amount, table: Table, log: &mut Log) -> BTreeMap<Metric, f64> {
    let seconds = format!("--seconds={}", amount.burst);
    let connect = log.try_on(&table.title(), Metric::Connect.title().0, || {
        let done = lab.load::<Connects>(Part::Laptop, &["connects", TIMED, &seconds])?;
        ensure!(done.failed == 0, "{} failed: {}", done.failed, done.error.unwrap_or_default());
        ensure!(done.count > 0, "none");
        Ok(1e6 / done.rate())
    });
    let touch = log.try_on(&table.title(), Metric::Touch.title().0, || {
        let touched = lab.load::<Touched>(Part::Laptop, &["touch", OTHER, &seconds])?;
        Some(touched.nanoseconds).filter(|time| *time > 0.0).context("no time")
    });
    [(Metric::Connect, connect), (Metric::Touch, touch)].into_iter().filter_map(|(m, v)| Some((m, v?))).collect()
}

/// Each round's cost of the full table as a multiple of the empty one's.
pub(crate) fn ratio(rows: &[Row<Table, Metric>], metric: Metric) -> Vec<f64> {
    ratios(&column(rows, Table::Full, metric), &column(rows, Table::Empty, metric))
}

/// What has to be reached.
pub(crate) fn goals(rows: &[Row<Table, Metric>]) -> Vec<Goal> {
    let goal = |metric: Metric| {
        let what = format!("with {RULES} rules and {FLOWS} flows, {}", metric.title().0);
        Goal::at_most(what, format!("at most {MOST} x an empty table"), median(&ratio(rows, metric)), MOST)
    };
    Metric::ALL.map(goal).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_is_a_ratio_of_the_same_round() {
        let row = |empty: f64, full: f64| -> Row<Table, Metric> {
            let at = |value| BTreeMap::from([(Metric::Connect, value)]);
            Row::from([(Table::Empty, at(empty)), (Table::Full, at(full))])
        };
        let met = |rows: &[_]| goals(rows).into_iter().map(|goal| goal.met).collect::<Vec<_>>();
        assert_eq!(met(&[row(100.0, 120.0), row(10.0, 13.0), row(50.0, 90.0)]), [Some(true), None]);
        assert_eq!(met(&[row(100.0, 131.0)]), [Some(false), None]);
        assert_eq!(met(&[]), [None, None]);
    }
}
