//! `tpx maps dump`: what is carried, and what the kernel holds.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::{output::Output, render::table, simple};
use crate::{
    failure::Failure,
    ipc::{MapsView, Reply, Request},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx maps dump                      everything
  tpx maps dump flows vnat           two sections
  tpx maps dump flows --watch        once a second, until Ctrl-C
  tpx maps dump counters --watch --format json | jq .   one JSON document a line";

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

/// Arguments of `tpx maps dump`.
#[derive(Args)]
pub(crate) struct DumpArgs {
    /// Parts to print [default: all]
    #[arg(value_enum, value_name = "SECTION")]
    sections: Vec<Section>,
    /// Print again every second: redrawn on a terminal, appended elsewhere
    #[arg(short, long)]
    watch: bool,
}

/// A part of the dump.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// What is steered, and what is not
    Rules,
    /// Virtual addresses and what they stand for
    Vnat,
    /// What is carried now, with its process
    Flows,
    /// Who sees the cluster
    Scopes,
    /// Name servers that tpx answers for
    Names,
    /// Connections whose first packet is held or was just released
    Held,
    /// What the programs counted
    Counters,
}

/// Runs `tpx maps dump`.
pub(crate) fn dump(out: &Output, name: &str, args: &DumpArgs) -> Result<ExitCode, Failure> {
    let sections = if args.sections.is_empty() { Section::value_variants().to_vec() } else { args.sections.clone() };
    let redraw = args.watch && out.is_text() && std::io::stdout().is_terminal();
    loop {
        // One question a connection: the daemon answers no second one.
        let view = match simple::client(name)?.ask(&Request::MapsDump, &mut |_| {})? {
            Reply::Maps(view) => *view,
            other => return Err(simple::unexpected(&other)),
        };
        let text = || sections.iter().map(|section| section.text(&view)).collect::<Vec<_>>().join("\n\n");
        if !args.watch {
            out.result(&document(&view, &sections), text);
            return Ok(ExitCode::SUCCESS);
        }
        if redraw {
            // Home, the text with each line's rest erased, and the rest of the screen erased (ECMA-48 CUP, EL, ED): no
            // flicker, and what scrolled by stays.
            let lines: String = text().lines().map(|line| format!("{line}\x1b[K\n")).collect();
            let _ = write!(std::io::stdout(), "\x1b[H{lines}\x1b[J");
            let _ = std::io::stdout().flush();
        } else if out.append(&document(&view, &sections), text).is_err() {
            // Nobody reads any more.
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(EVERY);
    }
}

/// The chosen sections for programs, and the names of their addresses.
fn document(view: &MapsView, sections: &[Section]) -> Map<String, Value> {
    let Ok(Value::Object(mut all)) = serde_json::to_value(view) else { return Map::new() };
    let mut kept: Vec<&str> = sections.iter().flat_map(|section| section.fields()).copied().collect();
    kept.push("names");
    all.retain(|key, _| kept.contains(&key.as_str()));
    all
}

impl Section {
    /// Its fields in the document.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Section::Rules => &["rules", "denied_ports"],
            Section::Vnat => &["vnat", "translations"],
            Section::Flows => &["flows", "datagrams"],
            Section::Scopes => &["scopes"],
            Section::Names => &["name_servers"],
            Section::Held => &["held"],
            Section::Counters => &["counters", "bypassed_sockets"],
        }
    }

    fn text(self, view: &MapsView) -> String {
        let maps = &view.maps;
        let address = |address: &SocketAddr| address.to_string();
        match self {
            Section::Rules => {
                let nets = maps.rules.iter().map(|r| vec![r.cidr.to_string(), r.action.clone()]);
                let ports = maps.denied_ports.iter().map(|port| vec![format!("port {port}"), "deny".into()]);
                table(&["RULE", "ACTION"], nets.chain(ports))
            }
            Section::Vnat => table(
                &["VIRTUAL", "REAL", "SERVICE OR POD", "TRANSLATED BY"],
                view.vnat.iter().map(|r| {
                    let by = if r.in_kernel { "kernel" } else { "user daemon" };
                    vec![r.virtual_ip.to_string(), r.real.to_string(), named(&view.names, r.virtual_ip), by.into()]
                }),
            ),
            Section::Flows => table(
                &["FLOW", "FROM", "TO", "SERVICE OR POD", "LEADS TO", "PROCESS", "SECONDS"],
                view.flows.iter().map(|r| {
                    let process = r.process.as_ref().map_or("-".into(), |p| format!("{} ({})", p.name, p.pid));
                    vec![
                        r.protocol.clone(),
                        address(&r.source),
                        address(&r.destination),
                        named(&view.names, r.destination.ip()),
                        address(&r.target),
                        process,
                        format!("{:.0}", r.seconds),
                    ]
                }),
            ),
            Section::Scopes => table(
                &["CONNECTION", "SCOPE", "ROAD", "PROCESSES"],
                view.scopes.iter().map(|r| {
                    let processes = r.processes.map_or_else(|| "all".into(), |count| count.to_string());
                    vec![r.connection.clone(), r.scope.clone(), r.road.clone(), processes]
                }),
            ),
            Section::Names => table(
                &["NAME SERVER", "ANSWERED AT"],
                maps.name_servers.iter().map(|r| vec![r.name_server.to_string(), r.answered_at.to_string()]),
            ),
            Section::Held => table(
                &["HELD FROM", "TO", "SERVICE OR POD", "STATE", "SYNS"],
                maps.held.iter().map(|r| {
                    let name = named(&view.names, r.destination.ip());
                    vec![address(&r.source), address(&r.destination), name, r.state.clone(), r.syns.to_string()]
                }),
            ),
            Section::Counters => {
                let counters = maps.counters.iter().map(|r| vec![r.name.clone(), r.value.to_string()]);
                let text = table(&["COUNTER", "VALUE"], counters);
                format!("{text}\n\nOwn sockets bypassed: {}", maps.bypassed_sockets)
            }
        }
    }
}

fn named(names: &BTreeMap<IpAddr, String>, ip: IpAddr) -> String {
    names.get(&ip).cloned().unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{FlowRow, Process, VnatRow};

    fn view() -> MapsView {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        MapsView {
            vnat: vec![VnatRow { virtual_ip: ip("246.246.1.1"), real: ip("10.96.0.10"), in_kernel: true }],
            flows: vec![FlowRow {
                protocol: "tcp".into(),
                source: at("192.0.2.1:40000"),
                destination: at("246.246.1.1:80"),
                target: at("10.96.0.10:80"),
                process: Some(Process { pid: 7, name: "curl".into() }),
                seconds: 3.0,
                number: 0,
                road: tpx_core::explain::Way::Express,
                uid: None,
                bridge: None,
                bytes_up: 0,
                bytes_down: 0,
                packets_up: None,
                packets_down: None,
                ended_seconds_ago: None,
            }],
            names: [(ip("246.246.1.1"), "web-app.emojivoto".to_owned())].into(),
            ..MapsView::default()
        }
    }

    #[test]
    fn names_stand_beside_addresses() {
        let view = view();
        for section in [Section::Vnat, Section::Flows] {
            let text = section.text(&view);
            let row = text.lines().nth(1).unwrap();
            assert!(row.contains("246.246.1.1") && row.contains("web-app.emojivoto"), "{text}");
        }
        assert!(Section::Flows.text(&view).contains("curl (7)"));
    }

    #[test]
    fn only_what_was_asked_for_is_in_the_document() {
        let keys = |sections: &[Section]| document(&view(), sections).keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&[Section::Flows]), ["datagrams", "flows", "names"]);
        let all = keys(Section::value_variants());
        let fields: usize = Section::value_variants().iter().map(|section| section.fields().len()).sum();
        // With `names`, which belongs to all; a field that no section has would never be shown.
        assert_eq!(all.len(), fields + 1);
        assert_eq!(all.len(), serde_json::to_value(view()).unwrap().as_object().unwrap().len());
    }
}
