//! Where systemd-resolved runs: programs that ask it by D-Bus or its own socket get the same answers as all others.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::Case;
use crate::{
    laptop,
    process::sh,
    residue,
    resolved::{Resolved, getent, resolvectl},
};

pub(super) const CASES: &[Case] = &[
    ("resolved::every_road_gives_the_same_answer", same_answers),
    ("resolved::behind_virtual_addresses", virtually),
    ("resolved::leaves_with_the_link", leaves),
];

const NAMES: [&str; 4] =
    ["web-app.emojivoto", "web-app.emojivoto.svc", "web-app.emojivoto.svc.cluster.local", "web-0.web.stateful"];

fn addresses(text: &str) -> BTreeSet<String> {
    text.split_whitespace().filter(|word| word.parse::<std::net::IpAddr>().is_ok()).map(str::to_owned).collect()
}

/// By nsswitch's resolve module, by D-Bus, by the stub at 127.0.0.53.
fn asked_everywhere(name: &str) -> Result<[BTreeSet<String>; 3]> {
    let stub = format!("dig +short +time=6 @127.0.0.53 {name} A; dig +short +time=6 @127.0.0.53 {name} AAAA");
    Ok([
        addresses(&getent(name)?),
        addresses(&resolvectl(&format!("query --legend=no {name}"))?),
        addresses(&sh(&stub)?.success()?),
    ])
}

fn judge(flags: &[&str]) -> Result<()> {
    laptop::quit()?;
    let _resolved = Resolved::start()?;
    laptop::connect_with(flags)?;
    for name in NAMES {
        let [module, bus, stub] = asked_everywhere(name)?;
        ensure!(module.len() >= 2 && module == bus && bus == stub, "{name}: {module:?}, {bus:?}, {stub:?}");
    }
    // A single label of the connected namespace, which systemd-resolved sends nowhere without a search domain.
    ensure!(addresses(&getent("web-app")?) == addresses(&getent("web-app.emojivoto")?), "a single label");
    ensure!(sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?.contains("Emoji Vote"));
    // The rest of the world is as before.
    ensure!(addresses(&getent("www.example.test")?).contains("203.0.113.80"), "the internet's names");
    laptop::quit()?;
    residue::nothing_left()
}

fn same_answers() -> Result<()> {
    judge(&[])
}

fn virtually() -> Result<()> {
    judge(&["--vnat", "all"])
}

fn leaves() -> Result<()> {
    laptop::quit()?;
    let _resolved = Resolved::start()?;
    laptop::connect_with(&[])?;
    let told = resolvectl("dns")?;
    ensure!(told.lines().any(|line| line.contains("(tpx0)") && line.contains("246.246.255.")), "{told}");
    let domains = resolvectl("domain")?;
    ensure!(domains.contains("~emojivoto") && domains.contains("emojivoto.svc.cluster.local"), "{domains}");
    for pid in laptop::daemons()?.into_iter().map(|(pid, _)| pid) {
        sh(&format!("kill -9 {pid}"))?.success()?;
    }
    residue::nothing_left()?;
    ensure!(!resolvectl("dns")?.contains("tpx0"), "tpx0 is still known");
    ensure!(getent("web-app.emojivoto").is_err(), "the cluster's names must be gone");
    ensure!(addresses(&getent("www.example.test")?).contains("203.0.113.80"), "the internet's names");
    Ok(())
}
