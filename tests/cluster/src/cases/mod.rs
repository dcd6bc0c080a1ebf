//! The cases, in the order in which they run: first what a connection does, then what ends it.

mod containers;
mod crash;
mod dns;
mod docker;
mod faults;
mod floor;
mod flows;
mod look;
mod manager;
mod maps;
mod policy;
mod reach;
mod resolved;
mod run;
mod scopes;
mod semantics;
mod udp;
mod users;
mod volume;
mod vpn;
mod wrong;

use crate::laptop;

/// A case's name and what it does.
pub(crate) type Case = (&'static str, fn() -> anyhow::Result<()>);

/// All cases. Those that look at the kernel's maps, or need its programs, have nothing to see where the floor carries
/// everything.
pub(crate) fn all() -> Vec<Case> {
    let first = [
        wrong::CASES,
        manager::CASES,
        reach::CASES,
        dns::CASES,
        semantics::CASES,
        udp::CASES,
        floor::CASES,
        containers::CASES,
        volume::CASES,
        vpn::CASES,
        resolved::CASES,
        look::CASES,
        flows::CASES,
        policy::CASES,
    ];
    let programs = if laptop::is_tun() {
        run::ON_THE_FLOOR.to_vec()
    } else {
        [containers::EXPRESS, docker::CASES, faults::EXPRESS, maps::CASES, run::CASES, scopes::CASES].concat()
    };
    [&first.concat(), &programs[..], crash::CASES, faults::CASES, users::CASES].concat()
}
