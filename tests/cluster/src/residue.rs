//! What may be left when nothing is connected: nothing that has an effect.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    laptop,
    process::{eventually, sh},
};

/// Longest that a clean-up may take, also after kill -9.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// Programs that tpx loads, by the names the kernel shows (at most 15 characters).
const PROGRAMS: [&str; 10] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "lookup",
    "hold",
];

/// After every case: where nobody is connected any more, nothing may be left.
pub(crate) fn after_case(name: &str, result: Result<()>) -> Result<()> {
    result?;
    if laptop::status()?.is_none() && laptop::daemons()?.is_empty() {
        nothing_left().with_context(|| format!("after {name}"))?;
    }
    Ok(())
}

/// Within two seconds there is no program, rule with effect, route, device, address or process.
pub(crate) fn nothing_left() -> Result<()> {
    eventually(CLEAN_UP, || {
        let daemons = laptop::daemons()?;
        ensure!(daemons.is_empty(), "processes are left: {daemons:?}");
        no_datapath()
    })
}

/// As [`nothing_left`], but daemons may go on.
pub(crate) fn no_datapath() -> Result<()> {
    let devices = sh("ip -o link | grep -c ' tpx[0-9]' || true")?.success()?;
    ensure!(devices.trim() == "0", "a device is left: {}", sh("ip -o link")?.stdout);
    // A rule over an empty table does nothing: the look-up goes on with the next rule.
    for table in 7071..7079 {
        for family in ["-4", "-6"] {
            let routes = sh(&format!("ip {family} route show table {table} 2>/dev/null"))?.stdout;
            ensure!(routes.trim().is_empty(), "routes are left in table {table}: {routes}");
        }
    }
    let programs = programs()?;
    ensure!(programs.is_empty(), "programs are left: {programs:?}");
    let sockets = sh("ss -Htlnp 'sport = :53' | grep tpx || true")?.stdout;
    ensure!(sockets.trim().is_empty(), "sockets are left: {sockets}");
    Ok(())
}

/// The names of tpx's programs that are loaded.
pub(crate) fn programs() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for program in aya::programs::loaded_programs() {
        // A program may end while the list is read.
        let Ok(program) = program else { continue };
        if let Some(name) = program.name_as_str().filter(|name| PROGRAMS.contains(name)) {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}
