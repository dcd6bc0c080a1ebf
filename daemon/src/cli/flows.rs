//! `tpx flows`: what is carried, how much, whose it is and where it leads.

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{BinaryBytes, FormattedDuration};
use serde::Serialize;

use super::{output::Output, render::table, simple};
use crate::{
    failure::Failure,
    ipc::{FlowRow, FlowsView, Reply, Request},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx flows                          what is carried now, most bytes first
  tpx flows --ended                  also the last 256 flows that ended
  tpx flows --watch                  once a second with rates, until Ctrl-C
  tpx flows --watch --format json | jq -c '.flows[0]'   one JSON document a line

TCP is shown without packets: tpx carries its bytes.";

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

/// Arguments of `tpx flows`.
#[derive(Args)]
pub(crate) struct FlowsArgs {
    /// Also flows that ended lately
    #[arg(long)]
    ended: bool,
    /// Print again every second, with rates: redrawn on a terminal, appended elsewhere
    #[arg(short, long)]
    watch: bool,
}

/// A row as it is printed.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: FlowRow,
    /// The service or pod behind the destination.
    service: Option<String>,
    /// Bytes a second since the look before; `null`: there was none.
    up_rate: Option<u64>,
    /// The same, from the cluster.
    down_rate: Option<u64>,
}

/// The document of one look.
#[derive(Debug, Serialize)]
struct Document {
    flows: Vec<Shown>,
}

/// What a look is compared with.
struct Before {
    at: Instant,
    bytes: HashMap<u64, (u64, u64)>,
}

/// Runs `tpx flows`.
pub(crate) fn run(out: &Output, name: &str, args: &FlowsArgs) -> Result<ExitCode, Failure> {
    let redraw = args.watch && out.is_text() && std::io::stdout().is_terminal();
    let mut before: Option<Before> = None;
    loop {
        // One question a connection: the daemon answers no second one.
        let view = match simple::client(name)?.ask(&Request::Flows { ended: args.ended }, &mut |_| {})? {
            Reply::Flows(view) => *view,
            other => return Err(simple::unexpected(&other)),
        };
        let now = Instant::now();
        let bytes = view.flows.iter().map(|row| (row.number, (row.bytes_up, row.bytes_down))).collect();
        let document = Document { flows: sorted(view, before.as_ref(), now) };
        before = Some(Before { at: now, bytes });
        let text = || text(&document.flows, args.watch);
        if !args.watch {
            out.result(&document, text);
            return Ok(ExitCode::SUCCESS);
        }
        if redraw {
            // As `tpx maps dump --watch`: home, each line's rest and the screen's rest erased (ECMA-48 CUP, EL, ED).
            let lines: String = text().lines().map(|line| format!("{line}\x1b[K\n")).collect();
            let _ = write!(std::io::stdout(), "\x1b[H{lines}\x1b[J");
            let _ = std::io::stdout().flush();
        } else if out.append(&document, text).is_err() {
            // Nobody reads any more.
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(EVERY);
    }
}

/// By what was moved since `before` where that is known, then by all that was moved.
fn sorted(view: FlowsView, before: Option<&Before>, now: Instant) -> Vec<Shown> {
    let FlowsView { flows, names } = view;
    let mut shown: Vec<Shown> = flows
        .into_iter()
        .map(|row| {
            let rates = before.map(|before| {
                // A flow that is new has moved all of its bytes since.
                let (up, down) = before.bytes.get(&row.number).copied().unwrap_or_default();
                let elapsed = now.duration_since(before.at).as_secs_f64().max(0.001);
                let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / elapsed) as u64;
                (rate(row.bytes_up, up), rate(row.bytes_down, down))
            });
            let service = names.get(&row.destination.ip()).cloned();
            Shown { row, service, up_rate: rates.map(|rates| rates.0), down_rate: rates.map(|rates| rates.1) }
        })
        .collect();
    let rate = |s: &Shown| s.up_rate.unwrap_or_default() + s.down_rate.unwrap_or_default();
    let total = |s: &Shown| s.row.bytes_up + s.row.bytes_down;
    shown.sort_by_key(|s| std::cmp::Reverse((rate(s), total(s))));
    shown
}

fn text(flows: &[Shown], rates: bool) -> String {
    let mut header = vec!["FLOW", "UP", "DOWN"];
    if rates {
        header.extend(["UP/S", "DOWN/S"]);
    }
    header.extend(["PACKETS UP/DOWN", "AGE", "PROCESS", "SERVICE OR POD", "TO", "ROAD"]);
    let bytes = |n: u64| BinaryBytes(n).to_string();
    let rows = flows.iter().map(|Shown { row, service, up_rate, down_rate }| {
        let mut cells = vec![row.protocol.clone(), bytes(row.bytes_up), bytes(row.bytes_down)];
        if rates {
            cells.extend([up_rate, down_rate].map(|rate| rate.map_or("-".into(), bytes)));
        }
        let packets = row.packets_up.zip(row.packets_down);
        let age = FormattedDuration(Duration::from_secs_f64(row.seconds)).to_string();
        let ended = if row.ended_seconds_ago.is_some() { ", ended" } else { "" };
        let process = match (&row.process, row.uid, &row.bridge) {
            (Some(process), ..) => format!("{} ({})", process.name, process.pid),
            (None, Some(uid), _) => format!("of user {uid}"),
            (None, None, Some(bridge)) => format!("container {} ({bridge})", row.source.ip()),
            (None, None, None) => "-".into(),
        };
        let road = serde_json::to_value(row.road).ok().and_then(|road| Some(road.as_str()?.to_owned()));
        cells.extend([
            packets.map_or("-".into(), |(up, down)| format!("{up}/{down}")),
            format!("{age}{ended}"),
            process,
            service.clone().unwrap_or_else(|| "-".into()),
            row.destination.to_string(),
            road.unwrap_or_default(),
        ]);
        cells
    });
    table(&header, rows)
}

#[cfg(test)]
mod tests {
    use tpx_core::explain::Way;

    use super::*;
    use crate::ipc::Process;

    fn row(number: u64, up: u64, down: u64) -> FlowRow {
        FlowRow {
            number,
            protocol: "tcp".into(),
            source: "192.0.2.1:40000".parse().unwrap(),
            destination: "10.96.0.10:80".parse().unwrap(),
            target: "10.96.0.10:80".parse().unwrap(),
            road: Way::Express,
            process: Some(Process { pid: 7, name: "curl".into() }),
            uid: Some(1000),
            bridge: None,
            bytes_up: up,
            bytes_down: down,
            packets_up: None,
            packets_down: None,
            seconds: 3.0,
            ended_seconds_ago: None,
        }
    }

    fn view(flows: Vec<FlowRow>) -> FlowsView {
        FlowsView { flows, names: [("10.96.0.10".parse().unwrap(), "web-app.emojivoto".to_owned())].into() }
    }

    #[test]
    fn most_bytes_come_first_and_while_watching_the_fastest() {
        let now = Instant::now();
        let numbers = |shown: &[Shown]| shown.iter().map(|s| s.row.number).collect::<Vec<_>>();
        let flows = vec![row(0, 1, 1), row(1, 5000, 5000), row(2, 0, 4000)];
        assert_eq!(numbers(&sorted(view(flows.clone()), None, now)), [1, 2, 0]);
        let before = Before { at: now, bytes: [(0, (1, 1)), (1, (5000, 5000))].into() };
        let shown = sorted(view(flows), Some(&before), now + Duration::from_secs(2));
        assert_eq!(numbers(&shown), [2, 1, 0]);
        assert_eq!((shown[0].up_rate, shown[0].down_rate), (Some(0), Some(2000)));
    }

    #[test]
    fn a_line_says_who_where_and_how() {
        let shown = sorted(view(vec![row(0, 2048, 0)]), None, Instant::now());
        let text = text(&shown, false);
        for word in ["2.00 KiB", "curl (7)", "web-app.emojivoto", "10.96.0.10:80", "express"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(!text.contains("/S"));
        let bridge = Some("docker0".to_owned());
        let container = FlowRow { process: None, uid: None, bridge, road: Way::Floor, ..row(0, 1, 1) };
        let text = super::text(&sorted(view(vec![container]), None, Instant::now()), false);
        assert!(text.contains("container 192.0.2.1 (docker0)"), "{text}");
        let json = serde_json::to_value(&shown[0]).unwrap();
        assert!(json["bytes_up"] == 2048 && json["road"] == "express" && json["packets_up"].is_null(), "{json}");
    }
}
