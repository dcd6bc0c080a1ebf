//! What was measured, and what follows from it: medians, ratios, goals. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use tpx_bench::stats::{median, ratios};

use crate::conditions::Conditions;
use crate::procs::{Memory, Process};

/// A way from a client to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Road {
    /// From the laptop to the ClusterIP.
    Tpx,
    /// From the laptop through `kubectl port-forward svc/…`.
    Kubectl,
    /// From the node to the ClusterIP.
    Direct,
}

impl Road {
    pub(crate) const ALL: [Road; 3] = [Road::Tpx, Road::Kubectl, Road::Direct];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Road::Tpx => "tpx",
            Road::Kubectl => "kubectl port-forward",
            Road::Direct => "direct",
        }
    }
}

/// What is measured on a road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Download,
    Upload,
    Ping,
    PingP99,
    BusyPing,
    BusyPingP99,
    Connects,
    ConnectsAtOnce,
    CpuDownload,
    CpuUpload,
    Ready,
    FirstByte,
}

impl Metric {
    pub(crate) const ALL: [Metric; 12] = [
        Metric::Download,
        Metric::Upload,
        Metric::Ping,
        Metric::PingP99,
        Metric::BusyPing,
        Metric::BusyPingP99,
        Metric::Connects,
        Metric::ConnectsAtOnce,
        Metric::CpuDownload,
        Metric::CpuUpload,
        Metric::Ready,
        Metric::FirstByte,
    ];

    /// What it is and its unit.
    pub(crate) fn title(self) -> (&'static str, &'static str) {
        match self {
            Metric::Download => ("one stream, download", "MiB/s"),
            Metric::Upload => ("one stream, upload", "MiB/s"),
            Metric::Ping => ("64-byte round trip, p50", "ms"),
            Metric::PingP99 => ("64-byte round trip, p99", "ms"),
            Metric::BusyPing => ("same beside a download, p50", "ms"),
            Metric::BusyPingP99 => ("same beside a download, p99", "ms"),
            Metric::Connects => ("connects, one at a time", "1/s"),
            Metric::ConnectsAtOnce => ("connects, 16 at a time", "1/s"),
            Metric::CpuDownload => ("CPU of the road, download", "s/GiB"),
            Metric::CpuUpload => ("CPU of the road, upload", "s/GiB"),
            Metric::Ready => ("from nothing until ready", "s"),
            Metric::FirstByte => ("from nothing until first byte", "s"),
        }
    }
}

/// What one road showed in one round.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Seen {
    pub(crate) values: BTreeMap<Metric, f64>,
    /// CPU seconds per GiB of each process, download.
    pub(crate) cpu_download: BTreeMap<String, f64>,
    /// CPU seconds per GiB of each process, upload.
    pub(crate) cpu_upload: BTreeMap<String, f64>,
}

/// One round: each road once.
pub(crate) type Round = BTreeMap<Road, Seen>;

/// Something that did not work.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    /// Counted from 1; 0 is before the first.
    pub(crate) round: usize,
    pub(crate) road: Road,
    pub(crate) what: String,
    pub(crate) error: String,
}

/// A daemon of tpx: its memory when it has nothing to do and after it had.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    /// Ten seconds after `tpx connect`, before any load, in the first round.
    pub(crate) idle: Option<Memory>,
    /// CPU it used in these ten seconds, as a part of one core.
    pub(crate) idle_cpu: Option<f64>,
    /// After the load of the last round.
    pub(crate) loaded: Option<Memory>,
}

/// A goal, and whether it is met; not measured where that is unknown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) limit: String,
    pub(crate) value: Option<f64>,
    pub(crate) met: Option<bool>,
}

/// Everything of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    /// Medians over the rounds.
    pub(crate) medians: BTreeMap<Road, BTreeMap<Metric, f64>>,
    /// tpx to kubectl port-forward, round by round.
    pub(crate) to_kubectl: BTreeMap<Metric, Vec<f64>>,
    /// tpx to direct, round by round.
    pub(crate) to_direct: BTreeMap<Metric, Vec<f64>>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) failures: Vec<Failure>,
    /// Whose CPU was counted on which road.
    pub(crate) processes: BTreeMap<Road, Vec<Process>>,
    pub(crate) rounds: Vec<Round>,
}

/// What the rounds left, before anything is concluded.
pub(crate) struct Raw {
    pub(crate) rounds: Vec<Round>,
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) processes: BTreeMap<Road, Vec<Process>>,
}

impl Report {
    pub(crate) fn new(conditions: Conditions, raw: Raw) -> Report {
        let Raw { rounds, daemons, failures, processes } = raw;
        let per_metric = |under| {
            let per = |metric| ratios(&column(&rounds, Road::Tpx, metric), &column(&rounds, under, metric));
            Metric::ALL.into_iter().map(|metric| (metric, per(metric))).filter(|(_, all)| !all.is_empty()).collect()
        };
        let (to_kubectl, to_direct) = (per_metric(Road::Kubectl), per_metric(Road::Direct));
        let medians = Road::ALL
            .into_iter()
            .map(|road| {
                let of = |metric| median(&column(&rounds, road, metric).into_iter().flatten().collect::<Vec<_>>());
                (road, Metric::ALL.into_iter().filter_map(|metric| Some((metric, of(metric)?))).collect())
            })
            .collect();
        let goals = goals(&to_kubectl, &daemons);
        Report { conditions, medians, to_kubectl, to_direct, goals, daemons, failures, processes, rounds }
    }
}

/// One metric of one road, round by round.
pub(crate) fn column(rounds: &[Round], road: Road, metric: Metric) -> Vec<Option<f64>> {
    rounds.iter().map(|round| round.get(&road)?.values.get(&metric).copied()).collect()
}

/// Memory that an idle daemon may hold, in MiB.
pub(crate) const MEMORY_GOAL: f64 = 30.0;

fn goals(to_kubectl: &BTreeMap<Metric, Vec<f64>>, daemons: &[Daemon]) -> Vec<Goal> {
    let ratio = |metric: Metric, least: Option<f64>, most: Option<f64>| {
        let value = to_kubectl.get(&metric).and_then(|all| median(all));
        let limit = match (least, most) {
            (Some(least), _) => format!("at least {least} x kubectl port-forward"),
            (None, most) => format!("at most {} x kubectl port-forward", most.unwrap_or(1.0)),
        };
        let met = value.map(|value| least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most));
        Goal { what: metric.title().0.to_owned(), limit, value, met }
    };
    let mut goals = vec![
        ratio(Metric::Download, Some(0.9), None),
        ratio(Metric::Upload, Some(0.9), None),
        ratio(Metric::Ping, None, Some(1.15)),
        ratio(Metric::FirstByte, None, Some(1.0)),
    ];
    for daemon in daemons {
        let value = daemon.idle.map(|memory| memory.rss as f64 / 1024.0);
        let what = format!("resident memory of {}, idle", daemon.name);
        let met = value.map(|value| value < MEMORY_GOAL);
        goals.push(Goal { what, limit: format!("under {MEMORY_GOAL} MiB"), value, met });
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(name: &str, rss: Option<u64>) -> Daemon {
        let idle = rss.map(|rss| Memory { rss, ..Memory::default() });
        Daemon { name: name.into(), idle, idle_cpu: None, loaded: None }
    }

    #[test]
    fn a_goal_is_met_missed_or_unknown() {
        let ratios = BTreeMap::from([
            (Metric::Download, vec![0.8, 0.9, 1.0]),
            (Metric::Upload, vec![0.89]),
            (Metric::Ping, vec![1.15]),
        ]);
        let daemons = [daemon("a", Some(30 * 1024)), daemon("b", Some(30 * 1024 - 1)), daemon("c", None)];
        let met: Vec<_> = goals(&ratios, &daemons).into_iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(true), Some(false), Some(true), None, Some(false), Some(true), None]);
    }

    #[test]
    fn a_round_in_which_a_road_failed_has_a_gap() {
        let seen = |value| Seen { values: BTreeMap::from([(Metric::Ping, value)]), ..Seen::default() };
        let rounds = [
            Round::from([(Road::Tpx, seen(1.0)), (Road::Kubectl, seen(2.0))]),
            Round::from([(Road::Tpx, seen(3.0))]),
            Round::from([(Road::Tpx, seen(4.0)), (Road::Kubectl, seen(1.0))]),
        ];
        assert_eq!(column(&rounds, Road::Kubectl, Metric::Ping), [Some(2.0), None, Some(1.0)]);
        assert_eq!(column(&rounds, Road::Tpx, Metric::Upload), [None, None, None]);
        let both = ratios(&column(&rounds, Road::Tpx, Metric::Ping), &column(&rounds, Road::Kubectl, Metric::Ping));
        assert_eq!(both, [0.5, 4.0]);
    }
}
