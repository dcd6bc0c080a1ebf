//! `tpx connect` in a large cluster: the lab's second one, filled with namespaces and services.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tpx_bench::said::{Cold, Populated};
use tpx_bench::stats::median;

use crate::lab::{Lab, Part};
use crate::procs::Finder;
use crate::report::Goal;
use crate::roads;
use crate::rounds::Log;

/// kubeconfig's context.
const CONTEXT: &str = "second";
const WHO: &str = "a large cluster";
/// How often it is connected to.
const TIMES: usize = 5;
/// Longest that filling it may take.
const FILL: Duration = Duration::from_secs(300);
/// Its controllers have caught up then.
const SETTLE: Duration = Duration::from_secs(5);
/// Seconds from nothing until connected.
const MOST: f64 = 3.0;

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Crowd {
    /// What it was filled with.
    pub(crate) filled: Populated,
    /// Each time.
    pub(crate) colds: Vec<Cold>,
}

impl Crowd {
    /// Middle of the seconds until `tpx connect` returned.
    pub(crate) fn ready(&self) -> Option<f64> {
        median(&self.colds.iter().map(|cold| cold.ready).collect::<Vec<_>>())
    }

    /// Middle of the seconds until the first byte of a page that was asked for by its name.
    pub(crate) fn first_byte(&self) -> Option<f64> {
        median(&self.colds.iter().map(|cold| cold.first_byte).collect::<Vec<_>>())
    }
}

/// Fills the cluster and connects to it again and again.
pub(crate) fn measure(lab: &Lab, finder: &Finder, log: &mut Log) -> Result<Option<Crowd>> {
    let context = format!("--context={CONTEXT}");
    let fill = || {
        let said = lab.run_within(FILL, Part::Laptop, &["tpx-populate", &context])?;
        lab.run(Part::Laptop, &["tpx", "manager", "install", &context])?;
        Ok(serde_json::from_str::<Populated>(said.trim())?)
    };
    let Some(filled) = log.try_on(WHO, "fill it", fill) else { return Ok(None) };
    std::thread::sleep(SETTLE);
    let mut colds = Vec::new();
    for _ in 0..TIMES {
        log.go_on()?;
        let cold = log.try_on(WHO, "from nothing to the first byte", || {
            roads::no_daemons(finder)?;
            lab.load::<Cold>(Part::Laptop, &["cold", "tpx", &context])
        });
        colds.extend(cold);
        log.try_on(WHO, "tpx quit", || lab.run(Part::Laptop, &["tpx", "quit"]));
    }
    Ok(Some(Crowd { filled, colds }))
}

/// What has to be reached.
pub(crate) fn goals(crowd: Option<&Crowd>) -> Vec<Goal> {
    let what = "tpx connect among 1000 namespaces and 5000 services, from nothing".to_owned();
    let value = crowd.and_then(Crowd::ready);
    vec![Goal { what, limit: format!("under {MOST} s"), value, met: value.map(|seconds| seconds < MOST) }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_all_times_counts() {
        let cold = |ready: f64| Cold { ready, first_byte: ready + 0.5 };
        let filled = Populated { namespaces: 1000, services: 5000, seconds: 20.0 };
        let crowd = |times: &[f64]| Crowd { filled, colds: times.iter().map(|ready| cold(*ready)).collect() };
        let met = |crowd: Option<&Crowd>| goals(crowd).into_iter().map(|goal| goal.met).collect::<Vec<_>>();
        assert_eq!(met(Some(&crowd(&[2.9, 9.0, 1.0]))), [Some(true)]);
        assert_eq!(met(Some(&crowd(&[3.0]))), [Some(false)]);
        assert_eq!((met(Some(&crowd(&[]))), met(None)), (vec![None], vec![None]));
        assert_eq!(crowd(&[2.0]).first_byte(), Some(2.5));
    }
}
