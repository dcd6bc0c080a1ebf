//! `tpx explain`: why an address goes where it goes.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Args;

use super::{
    connections::{self, Used},
    output::Output,
    simple,
};
use crate::{
    failure::{Failure, Kind},
    ipc::{Explained, NameExplanation, ProcessExplanation, Reply, Request, Target},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx explain 10.96.0.10                an address
  tpx explain 10.96.0.10:53             and a port of it; [fd00::1]:53 for IPv6
  tpx explain web-app.emojivoto:80      a name, and all of its addresses
  tpx explain $(pgrep -n curl)          a process: whether it sees the cluster, and where its connections go";

/// Arguments of `tpx explain`.
#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// An address or a DNS name, with or without :PORT, or the id of a process
    #[arg(value_name = "ADDRESS|NAME|PID")]
    target: String,
}

/// Runs `tpx explain`.
pub(crate) fn run(out: &Output, used: Option<&Used>, args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let mut target = target(&args.target)?;
    let mut name = None;
    if let Target::Process(pid, sees) = &mut target {
        *sees = connections::of_process(*pid)?;
        name = sees.clone().filter(|_| used.is_none());
    }
    let name = name.map_or_else(|| connections::chosen(used), Ok)?;
    match simple::client(&name)?.ask(&Request::Explain { target }, &mut |_| {})? {
        Reply::Explained(explained) => out.result(&*explained, || text(&explained)),
        other => return Err(simple::unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}

/// What was typed: a number is a process, what looks like an address must be one, the rest are names.
fn target(text: &str) -> Result<Target, Failure> {
    let wrong = |what: String| {
        Failure::new(Kind::Usage, what, "give an address (10.96.0.10:53, [fd00::1]:53), a DNS name or a process id")
    };
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text
            .parse()
            .map(|pid| Target::Process(pid, None))
            .map_err(|_| wrong(format!("{text} is no process id")));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Target::Address(address.ip(), Some(address.port())));
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(Target::Address(ip, None));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => match port.parse::<u16>() {
            Ok(port) => (name, Some(port)),
            Err(_) => return Err(wrong(format!("{text:?} ends in no port"))),
        },
        None => (text, None),
    };
    let numeric = |name: &str| name.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'/'));
    if numeric(name) || name.contains([':', '/', '[', ']']) {
        return Err(wrong(format!("{text:?} is no address")));
    }
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match name.chars().all(letters) && name.parse::<tpx_core::dns::Name>().is_ok() {
        true => Ok(Target::Name(name.to_owned(), port)),
        false => Err(wrong(format!("{text:?} is no DNS name"))),
    }
}

fn text(explained: &Explained) -> String {
    let mut parts = Vec::new();
    parts.extend(explained.process.as_ref().map(process));
    parts.extend(explained.name.as_ref().map(name));
    for explanation in &explained.addresses {
        let mut text = explanation.to_string();
        if let Some(name) = explained.names.get(&explanation.address) {
            // Beside the address, which the first line consists of.
            let end = text.find('\n').unwrap_or(text.len());
            text.insert_str(end, &format!(" ({name})"));
        }
        parts.push(text);
    }
    parts.join("\n\n")
}

fn name(name: &NameExplanation) -> String {
    let mut rows = vec![("  answered by", name.answered_by.clone())];
    if !name.candidates.is_empty() {
        rows.push(("  asked", name.candidates.join(", ")));
    }
    let addresses: Vec<String> = name.addresses.iter().map(ToString::to_string).collect();
    rows.push((
        "  addresses",
        match &name.error {
            Some(error) => format!("none: {error}"),
            None => addresses.join(", "),
        },
    ));
    format!("{}\n{}", name.name, indented(&rows))
}

fn process(process: &ProcessExplanation) -> String {
    let network = match process.own_network {
        Some(true) => "this host's",
        Some(false) => "another network namespace",
        None => "unknown: the process is another user's",
    };
    let peers = match process.peers.len() {
        0 => "none that can be seen".to_owned(),
        n => format!("{n}, each explained below"),
    };
    let rows = [
        ("  connection", process.connection.clone().unwrap_or_else(|| "none".into())),
        ("  scope", process.scope.clone()),
        ("  network", network.to_owned()),
        ("  cgroup", process.cgroup.clone().unwrap_or_else(|| "unknown".into())),
        ("  sockets", peers),
    ];
    format!("process {} ({})\n{}", process.pid, process.name, indented(&rows))
}

fn indented(rows: &[(&str, String)]) -> String {
    let widest = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (key, value) in rows {
        let _ = writeln!(text, "{key:widest$}  {value}");
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_is_told_apart() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, wanted) in [
            ("4711", Target::Process(4711, None)),
            ("10.96.0.10", Target::Address(ip("10.96.0.10"), None)),
            ("10.96.0.10:53", Target::Address(ip("10.96.0.10"), Some(53))),
            ("fd00::1", Target::Address(ip("fd00::1"), None)),
            ("[fd00::1]", Target::Address(ip("fd00::1"), None)),
            ("[fd00::1]:53", Target::Address(ip("fd00::1"), Some(53))),
            ("web-app.emojivoto", Target::Name("web-app.emojivoto".into(), None)),
            ("web-app.emojivoto.:80", Target::Name("web-app.emojivoto.".into(), Some(80))),
            ("_http._tcp.web", Target::Name("_http._tcp.web".into(), None)),
        ] {
            assert_eq!(target(text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_none_of_these_is_said() {
        for (text, what) in [
            ("10.96.0.300", "\"10.96.0.300\" is no address"),
            ("10.96.0.0/16", "\"10.96.0.0/16\" is no address"),
            ("10.96.0.1:99999", "\"10.96.0.1:99999\" ends in no port"),
            ("fd00:::1", "\"fd00:::1\" is no address"),
            ("http://web", "\"http://web\" ends in no port"),
            ("99999999999", "99999999999 is no process id"),
            ("a..b", "\"a..b\" is no DNS name"),
            ("a b", "\"a b\" is no DNS name"),
            ("", "\"\" is no address"),
        ] {
            let failure = target(text).unwrap_err();
            assert_eq!((failure.what.as_str(), failure.kind), (what, Kind::Usage), "{text}");
        }
    }
}
