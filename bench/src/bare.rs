//! The datapath with nothing behind it: express lane, floor and plain loopback, each with the same services in one
//! program's memory (`tpx-road`). It shows what the road costs where no tunnel is slower.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;
use tpx_bench::said::{Asked, Bulk, Connects, Ping};
use tpx_bench::stats::{median, ratios};

use crate::grid::{self, Row, column};
use crate::lab::{Lab, Part, ROOT};
use crate::report::Goal;
use crate::rounds::{Amount, Log};

/// A way to the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    Loopback,
    Express,
    Floor,
}

impl Way {
    pub(crate) const ALL: [Way; 3] = [Way::Loopback, Way::Express, Way::Floor];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Way::Loopback => "plain loopback",
            Way::Express => "express lane",
            Way::Floor => "floor",
        }
    }

    /// What `tpx-road` calls it.
    fn word(self) -> &'static str {
        match self {
            Way::Loopback => "loopback",
            Way::Express => "express",
            Way::Floor => "floor",
        }
    }

    fn ip(self) -> &'static str {
        if self == Way::Loopback { "127.0.0.1" } else { "10.99.0.1" }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Down,
    Up,
    Ping,
    PingP99,
    Connects,
    ConnectsAtOnce,
    Datagrams,
    DatagramPing,
}

impl Metric {
    pub(crate) const ALL: [Metric; 8] = [
        Metric::Down,
        Metric::Up,
        Metric::Ping,
        Metric::PingP99,
        Metric::Connects,
        Metric::ConnectsAtOnce,
        Metric::Datagrams,
        Metric::DatagramPing,
    ];

    /// What it is and its unit.
    pub(crate) fn title(self) -> (&'static str, &'static str) {
        match self {
            Metric::Down => ("one stream, to the client", "MiB/s"),
            Metric::Up => ("one stream, from the client", "MiB/s"),
            Metric::Ping => ("64-byte round trip, p50", "us"),
            Metric::PingP99 => ("64-byte round trip, p99", "us"),
            Metric::Connects => ("connects, one at a time", "1/s"),
            Metric::ConnectsAtOnce => ("connects, 16 at a time", "1/s"),
            Metric::Datagrams => ("1200-byte datagrams echoed, 32 out", "1/s"),
            Metric::DatagramPing => ("1200-byte datagram's round trip, p50", "us"),
        }
    }
}

/// One round: every way once, in an order that turns.
pub(crate) fn round(lab: &Lab, amount: &Amount, round: usize, log: &mut Log) -> Result<Row<Way, Metric>> {
    let mut order = Way::ALL;
    order.rotate_left((round - 1) % Way::ALL.len());
    let mut row = Row::new();
    for way in order {
        log.go_on()?;
        let started = lab.start(Part::Laptop, ROOT, &["tpx-road", way.word()], |line| (line == "ready").then_some(()));
        // Ends when it goes out of scope, and what it changed with it.
        let Some((_road, ())) = log.try_on(way.title(), "tpx-road", || started) else { continue };
        row.insert(way, measure(lab, amount, way, log)?);
    }
    Ok(row)
}

fn measure(lab: &Lab, amount: &Amount, way: Way, log: &mut Log) -> Result<BTreeMap<Metric, f64>> {
    let at = |port: u16| format!("{}:{port}", way.ip());
    let (echo, discard, chargen) = (at(7), at(9), at(19));
    let seconds = format!("--seconds={}", amount.transfer);
    // Microseconds each, and they depend on the CPUs that the two ends happen to share: many.
    let (burst, pings) = (format!("--seconds={}", amount.burst), format!("--count={}", amount.pings * 10));
    let mut seen = BTreeMap::new();
    for (word, address, metric) in [("take", &chargen, Metric::Down), ("give", &discard, Metric::Up)] {
        let bulk =
            log.try_on(way.title(), metric.title().0, || lab.load::<Bulk>(Part::Laptop, &[word, address, &seconds]));
        seen.extend(bulk.map(|bulk| (metric, bulk.rate())));
        log.go_on()?;
    }
    let ping =
        log.try_on(way.title(), Metric::Ping.title().0, || lab.load::<Ping>(Part::Laptop, &["ping", &echo, &pings]));
    if let Some(ping) = ping {
        seen.extend([(Metric::Ping, ping.p50 * 1e3), (Metric::PingP99, ping.p99 * 1e3)]);
    }
    for (at_once, metric) in [("--at-once=1", Metric::Connects), ("--at-once=16", Metric::ConnectsAtOnce)] {
        let done = log.try_on(way.title(), metric.title().0, || {
            let done = lab.load::<Connects>(Part::Laptop, &["connects", &echo, &burst, at_once])?;
            ensure!(done.failed == 0, "{} failed: {}", done.failed, done.error.unwrap_or_default());
            Ok(done.rate())
        });
        seen.extend(done.map(|rate| (metric, rate)));
    }
    log.go_on()?;
    for (at_once, metric) in [("--at-once=32", Metric::Datagrams), ("--at-once=1", Metric::DatagramPing)] {
        let asked = log.try_on(way.title(), metric.title().0, || {
            lab.load::<Asked>(Part::Laptop, &["datagrams", &echo, &burst, at_once])
        });
        seen.extend(
            asked.map(|asked| (metric, if metric == Metric::Datagrams { asked.rate() } else { asked.p50 * 1e3 })),
        );
    }
    Ok(seen)
}

/// Each round's quotient of two ways.
pub(crate) fn ratio(rows: &[Row<Way, Metric>], over: Way, under: Way, metric: Metric) -> Vec<f64> {
    ratios(&column(rows, over, metric), &column(rows, under, metric))
}

/// What the express lane adds to a round trip over loopback, as a part of what the floor adds, round by round. Rounds in
/// which the floor was no slower than loopback say nothing.
pub(crate) fn added(rows: &[Row<Way, Metric>]) -> Vec<f64> {
    let [loopback, express, floor] = Way::ALL.map(|way| column(rows, way, Metric::Ping));
    let over = |all: &[Option<f64>]| -> Vec<Option<f64>> {
        all.iter().zip(&loopback).map(|(all, plain)| Some((*all)? - (*plain)?)).collect()
    };
    let by_floor: Vec<_> = over(&floor).into_iter().map(|added| added.filter(|added| *added > 0.0)).collect();
    ratios(&over(&express), &by_floor)
}

/// The middle of a metric.
pub(crate) fn middle(rows: &[Row<Way, Metric>], way: Way, metric: Metric) -> Option<f64> {
    grid::middle(rows, way, metric)
}

/// What the roads have to reach.
pub(crate) fn goals(rows: &[Row<Way, Metric>]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (over, under, least) in
        [(Way::Floor, Way::Loopback, 0.15), (Way::Express, Way::Floor, 3.0), (Way::Express, Way::Loopback, 0.5)]
    {
        for metric in [Metric::Down, Metric::Up] {
            let what = format!("from memory: {}, {}", over.title(), metric.title().0);
            let limit = format!("at least {least} x {}", under.title());
            goals.push(Goal::at_least(what, limit, median(&ratio(rows, over, under, metric)), least));
        }
    }
    let limit = "at most 0.5 x what the floor adds".to_owned();
    goals.push(Goal::at_most(
        "from memory: round trip added by the express lane".into(),
        limit,
        median(&added(rows)),
        0.5,
    ));
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_follow_from_the_rounds() {
        let row = |loopback: f64, express, floor| {
            let all =
                |rate: f64, ping| BTreeMap::from([(Metric::Down, rate), (Metric::Up, rate), (Metric::Ping, ping)]);
            Row::from([
                (Way::Loopback, all(loopback, 10.0)),
                (Way::Express, all(express, 14.0)),
                (Way::Floor, all(floor, 20.0)),
            ])
        };
        let met: Vec<_> = goals(&[row(100.0, 60.0, 20.0)]).into_iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(true); 7]);
        let met: Vec<_> = goals(&[row(100.0, 40.0, 14.0)]).into_iter().map(|goal| goal.met).collect();
        let (no, yes) = (Some(false), Some(true));
        assert_eq!(met, [no, no, no, no, no, no, yes]);
        assert!(goals(&[]).iter().all(|goal| goal.met.is_none()));
    }

    #[test]
    fn a_floor_that_adds_nothing_is_no_measure() {
        let row = |loopback, express, floor| -> Row<Way, Metric> {
            let all = [loopback, express, floor].map(|ping| BTreeMap::from([(Metric::Ping, ping)]));
            Way::ALL.into_iter().zip(all).collect()
        };
        let rows = [row(10.0, 14.0, 20.0), row(40.0, 16.0, 25.0), row(10.0, 9.0, 20.0), row(10.0, 9.0, 10.0)];
        assert_eq!(added(&rows), [0.4, -0.1]);
    }
}
