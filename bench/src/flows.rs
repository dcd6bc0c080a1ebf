//! Memory of an open flow that does nothing: in tpx's processes, in the kernel, in the kernel's maps. Through the whole road,
//! from the laptop to the cluster's echo.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tpx_bench::files;

use crate::full;
use crate::lab::{DEVELOPER, Lab, Part};
use crate::procs::{Process, kib};

/// Flows that are opened, where a process may have so many files.
const FLOWS: usize = 20_000;
/// Buffers of the opening are gone then.
const SETTLE: Duration = Duration::from_secs(3);

/// The kernel's own memory: sockets of all ends, which are on this machine, the cluster's too.
pub(crate) const KERNEL: &str = "kernel, all ends";
/// The maps that the user daemon and the kernel's programs share.
pub(crate) const MAPS: &str = "maps";

/// What a flow holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PerFlow {
    /// How many were open.
    pub(crate) flows: usize,
    /// How long it took to open them, in seconds.
    pub(crate) seconds: f64,
    /// KiB of each flow, by who holds them.
    pub(crate) kib: BTreeMap<String, f64>,
}

/// Opens flows while connected by tpx, whose processes are `own`.
pub(crate) fn measure(lab: &Lab, own: &[Process]) -> Result<PerFlow> {
    let addresses = echoes(lab)?;
    let before = held(own)?;
    let flows = FLOWS.min(files::connections());
    let (_open, opened) = full::open(lab, DEVELOPER, &addresses, "--connections", flows)?;
    std::thread::sleep(SETTLE);
    let after = held(own)?;
    Ok(PerFlow { flows, seconds: opened.seconds, kib: each(&before, &after, flows) })
}

/// The echo's addresses: a source port serves a flow to each.
fn echoes(lab: &Lab) -> Result<Vec<String>> {
    let ask = |words: &[&str]| lab.run(Part::Node, &[&["kubectl", "get", "-n", "default"], words].concat());
    let service = ask(&["service", "echo", "-o", "jsonpath={.spec.clusterIPs[*]}"])?;
    let pod = ask(&["pods", "-l", "app=echo", "-o", "jsonpath={.items[0].status.podIPs[*].ip}"])?;
    let at = |ip: &str| if ip.contains(':') { format!("[{ip}]:7") } else { format!("{ip}:7") };
    Ok(service.split_whitespace().chain(pod.split_whitespace()).map(at).collect())
}

/// KiB by who holds them.
fn held(own: &[Process]) -> Result<BTreeMap<String, u64>> {
    let mut held = BTreeMap::new();
    for process in own {
        held.insert(process.name.clone(), process.memory()?.rss);
    }
    let memory = fs::read_to_string("/proc/meminfo").context("/proc is not mounted")?;
    held.insert(KERNEL.into(), kib(&memory, "SUnreclaim").context("the kernel does not say SUnreclaim")?);
    let daemon = own.first().context("no process")?;
    held.insert(MAPS.into(), maps(daemon.pid)? / 1024);
    Ok(held)
}

/// Bytes of the maps that a process has, each counted once (bpf_map_show_fdinfo of the kernel).
fn maps(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Files come and go.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        maps.extend(map(&text));
    }
    Ok(maps.values().sum())
}

/// A map's id and its bytes.
fn map(fdinfo: &str) -> Option<(u32, u64)> {
    let field = |name: &str| fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some((field("map_id")?.parse().ok()?, field("memlock")?.parse().ok()?))
}

/// What came, divided among the flows.
fn each(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, flows: usize) -> BTreeMap<String, f64> {
    let grown = |(who, after): (&String, &u64)| Some((who.clone(), *after as f64 - *before.get(who)? as f64));
    after.iter().filter_map(grown).map(|(who, kib)| (who, kib / flows as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_divided() {
        let state = |daemon, kernel| BTreeMap::from([("tpx".to_owned(), daemon), (KERNEL.to_owned(), kernel)]);
        let each = each(&state(1000, 9000), &state(3000, 8000), 1000);
        assert_eq!((each["tpx"], each[KERNEL]), (2.0, -1.0));
    }

    #[test]
    fn a_map_has_an_id_and_its_memory() {
        let text =
            "pos:\t0\nmap_type:\t1\nmax_entries:\t65536\nmap_extra:\t0x0\nmemlock:\t527360\nmap_id:\t93\nfrozen:\t0\n";
        assert_eq!(map(text), Some((93, 527_360)));
        assert_eq!(map("pos:\t0\nflags:\t02000002\n"), None);
    }
}
