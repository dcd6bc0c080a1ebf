//! Answers from memory: tpx's name server next to a caching one of the laptop's own (dnsmasq), asked the same question by
//! the same client.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;
use tpx_bench::said::Asked;
use tpx_bench::stats::{median, ratios};

use crate::grid::{Row, column};
use crate::lab::{Background, DEVELOPER, Lab, Part};
use crate::report::{Goal, Road};
use crate::rounds::{Amount, Log};

/// What is asked for.
const NAME: &str = "web-app.emojivoto";
/// Where dnsmasq listens.
const SERVER: &str = "127.0.0.1:5353";

/// What is measured, of tpx while it is connected by one road, and of dnsmasq right before or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Own,
    Dnsmasq,
    OwnP99,
    DnsmasqP99,
    OwnRate,
    DnsmasqRate,
}

/// dnsmasq with the same answer in its memory.
pub(crate) fn dnsmasq(lab: &Lab, address: &str) -> Result<Background> {
    // A host record is an entry of its cache that does not run out.
    let record = format!("--host-record={NAME},{address}");
    let words = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"];
    let (ip, port) = SERVER.split_once(':').unwrap_or_default();
    let at = [format!("--listen-address={ip}"), format!("--port={port}"), record];
    // It says on standard error that it has started.
    let all = [&["sh", "-c", "exec \"$@\" 2>&1", "sh"], &words[..], &at.each_ref().map(String::as_str)].concat();
    let (dnsmasq, ()) = lab.start(Part::Laptop, DEVELOPER, &all, |line| line.contains("started").then_some(()))?;
    Ok(dnsmasq)
}

/// Asks both, each one at a time and 32 at once; who comes first changes from round to round.
pub(crate) fn measure(lab: &Lab, amount: &Amount, round: usize, road: Road, log: &mut Log) -> BTreeMap<Metric, f64> {
    let server = format!("--server={SERVER}");
    let seconds = format!("--seconds={}", amount.burst);
    let mut seen = BTreeMap::new();
    let mut order = [
        (None, Metric::Own, Metric::OwnP99, Metric::OwnRate),
        (Some(server.as_str()), Metric::Dnsmasq, Metric::DnsmasqP99, Metric::DnsmasqRate),
    ];
    order.rotate_left(round % 2);
    for (server, p50, p99, rate) in order {
        let who = if server.is_some() { "dnsmasq" } else { road.title() };
        let mut ask = |at_once: &str, metrics: &dyn Fn(&Asked) -> Vec<(Metric, f64)>| {
            let words: Vec<&str> = ["dns", NAME, &seconds, at_once].into_iter().chain(server).collect();
            let asked = log.try_on(who, "names", || {
                let asked = lab.load::<Asked>(Part::Laptop, &words)?;
                ensure!(asked.lost * 100 <= asked.count, "{} questions of {} were lost", asked.lost, asked.count);
                Ok(asked)
            });
            seen.extend(asked.iter().flat_map(metrics));
        };
        ask("--at-once=1", &|asked| vec![(p50, asked.p50 * 1e3), (p99, asked.p99 * 1e3)]);
        ask("--at-once=32", &|asked| vec![(rate, asked.rate())]);
    }
    seen
}

/// Each round's quotient of two metrics of one road.
pub(crate) fn ratio(rows: &[Row<Road, Metric>], road: Road, over: Metric, under: Metric) -> Vec<f64> {
    ratios(&column(rows, road, over), &column(rows, road, under))
}

/// What tpx's name server has to reach.
pub(crate) fn goals(rows: &[Row<Road, Metric>]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for road in Road::OWN {
        let time = median(&ratio(rows, road, Metric::Own, Metric::Dnsmasq));
        let rate = median(&ratio(rows, road, Metric::OwnRate, Metric::DnsmasqRate));
        let what = |what: &str| format!("{}: a name from memory, {what}", road.title());
        goals.push(Goal::at_most(what("time"), "at most 2 x dnsmasq".into(), time, 2.0));
        goals.push(Goal::at_least(what("per second, 32 out"), "at least 0.5 x dnsmasq".into(), rate, 0.5));
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_road_is_judged_by_its_own_rounds() {
        let seen = |own, rate| {
            BTreeMap::from([
                (Metric::Own, own),
                (Metric::Dnsmasq, 20.0),
                (Metric::OwnRate, rate),
                (Metric::DnsmasqRate, 90_000.0),
            ])
        };
        let rows = [Row::from([(Road::Tpx, seen(40.0, 44_000.0)), (Road::Floor, seen(41.0, 45_000.0))])];
        let met: Vec<_> = goals(&rows).into_iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(true), Some(false), Some(false), Some(true)]);
    }
}
