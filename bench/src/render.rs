//! The report for people: a table for the terminal and Markdown to keep. Pure.

use std::fmt::Write;

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, Table};
use tpx_bench::stats::median;

use crate::bare::{self, Way};
use crate::flows::PerFlow;
use crate::full;
use crate::grid::middle;
use crate::names;
use crate::procs::Memory;
use crate::report::{Goal, Metric, Report, Road};
use crate::rounds::Subject;

/// For a terminal.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    let of = |subject: &Subject| match subject {
        Subject::Roads => vec![numbers(report), named(report), cpu(report), memory(report)],
        Subject::Datapaths => vec![alone(report)],
        Subject::Tables => vec![full(report)],
        Subject::Flows => vec![per_flow(report)],
        Subject::Crowd => vec![crowd(report)],
    };
    for mut table in report.conditions.measured.iter().flat_map(of).chain([goals(report)]) {
        text += &format!("{}\n\n", trimmed(table.load_preset(NOTHING)));
    }
    for failure in failures(report) {
        text += &format!("failed: {failure}\n");
    }
    text
}

/// To keep.
pub(crate) fn markdown(report: &Report) -> String {
    let conditions = &report.conditions;
    let mut text = String::from("# tpx, kubectl port-forward and a direct connection\n\n");
    let load = |load: Option<f64>| load.map_or_else(|| "?".into(), |load| format!("{load:.1}"));
    writeln!(
        text,
        "{}; {} rounds{}; {}, {} cores, Linux {}; load {} before and {} after; tpx {} at commit {}; kubectl {}; Kubernetes {}; containerd {}.\n",
        conditions.date,
        conditions.rounds,
        if conditions.quick { " (quick)" } else { "" },
        conditions.cpu,
        conditions.cores,
        conditions.kernel,
        load(conditions.load_before),
        load(conditions.load_after),
        conditions.tpx,
        conditions.commit,
        conditions.kubectl,
        conditions.kubernetes,
        conditions.containerd,
    )
    .ok();
    text += "Everything runs on this one machine: client, road, cluster and server share its cores. Values are medians over \
             the rounds; each round measures every road once, in an order that turns; ratios are taken per round, \
             their median is shown with the least and the greatest. \"tpx\" is what `tpx connect` chooses, the express lane; \
             \"floor\" is `--datapath tun`.\n\n";
    for subject in &conditions.measured {
        text += &chapter(report, *subject);
    }
    text += &section("Goals", goals(report));
    if !report.failures.is_empty() {
        text += "## Failures\n\n";
        for failure in failures(report) {
            text += &format!("- {failure}\n");
        }
    }
    text
}

/// What is written about one part.
fn chapter(report: &Report, subject: Subject) -> String {
    match subject {
        Subject::Roads => [
            section("Numbers", numbers(report)).as_str(),
            "![](roads.svg)\n\n",
            &section("A name from memory", named(report)),
            "The same question by the same client over UDP, to the laptop's configured name server (which is tpx) and to \
             dnsmasq on the laptop. tpx has the answer from the cluster and asks again when its time has run out.\n\n",
            &section("CPU seconds per GiB, by process", cpu(report)),
            "User and system time of /proc/PID/stat. The clients, the service's pod and the kernel's own threads are not \
             in it; what the cluster's processes do anyway is.\n\n",
            &section("Memory of tpx, MiB", memory(report)),
            "![](memory.svg)\n\n",
        ]
        .concat(),
        Subject::Datapaths => [
            section("The datapath alone", alone(report)).as_str(),
            "![](bare.svg)\n\nNo tunnel and no cluster: the services are in the memory of one program that stands where \
             the user daemon does; on plain loopback the same program listens at 127.0.0.1.\n\n",
        ]
        .concat(),
        Subject::Tables => [
            section("Many rules and flows", full(report)).as_str(),
            "The datapath alone, as above; flows beyond the files that a process may have are UDP's. What is timed goes \
             to an address of its own.\n\n",
        ]
        .concat(),
        Subject::Flows => [
            section("Memory of an open flow, KiB", per_flow(report)).as_str(),
            "TCP connections through the whole road that do nothing. The kernel's part is that of all ends, which are on \
             this machine: the client's socket and the user daemon's on the laptop, the manager's and the pod's.\n\n",
        ]
        .concat(),
        Subject::Crowd => section("A large cluster", crowd(report)),
    }
}

fn section(title: &str, mut table: Table) -> String {
    format!("## {title}\n\n{}\n\n", table.load_preset(ASCII_MARKDOWN))
}

fn numbers(report: &Report) -> Table {
    let mut titles: Vec<String> = vec![String::new(), String::new()];
    titles.extend(Road::ALL.map(|road| road.title().to_owned()));
    titles.extend(report.ratios.iter().map(|ratio| format!("{} / {}", short(ratio.over), short(ratio.under))));
    let mut table = table(titles);
    for metric in Metric::ALL {
        let (title, unit) = metric.title();
        let mut row = vec![title.to_owned(), unit.to_owned()];
        row.extend(Road::ALL.map(|road| number(report.medians.get(&road).and_then(|all| all.get(&metric)).copied())));
        row.extend(report.ratios.iter().map(|ratio| spread(ratio.rounds.get(&metric))));
        table.add_row(row);
    }
    right(&mut table, 2);
    table
}

/// A road in a title of few words.
fn short(road: Road) -> &'static str {
    match road {
        Road::Tpx => "tpx",
        Road::Floor => "floor",
        Road::Kubectl => "kubectl",
        Road::Direct => "direct",
    }
}

fn alone(report: &Report) -> Table {
    let compared = [(Way::Floor, Way::Loopback), (Way::Express, Way::Loopback), (Way::Express, Way::Floor)];
    let mut titles: Vec<String> = vec!["the datapath alone".into(), String::new()];
    titles.extend(Way::ALL.map(|way| way.title().to_owned()));
    titles.extend(compared.map(|(over, under)| format!("{} / {}", over.title(), under.title())));
    let mut table = table(titles);
    for metric in bare::Metric::ALL {
        let (title, unit) = metric.title();
        let mut row = vec![title.to_owned(), unit.to_owned()];
        row.extend(Way::ALL.map(|way| number(bare::middle(&report.bare, way, metric))));
        row.extend(compared.map(|(over, under)| spread(Some(&bare::ratio(&report.bare, over, under, metric)))));
        table.add_row(row);
    }
    right(&mut table, 2);
    table
}

fn named(report: &Report) -> Table {
    use names::Metric;
    let titles = ["a name from memory", "", "tpx", "dnsmasq", "tpx / dnsmasq"];
    let mut table = table(titles.map(str::to_owned));
    for road in Road::OWN {
        for (what, unit, own, other) in [
            ("p50", "us", Metric::Own, Metric::Dnsmasq),
            ("p99", "us", Metric::OwnP99, Metric::DnsmasqP99),
            ("32 out", "1/s", Metric::OwnRate, Metric::DnsmasqRate),
        ] {
            table.add_row([
                format!("{}, {what}", road.title()),
                unit.to_owned(),
                number(middle(&report.names, road, own)),
                number(middle(&report.names, road, other)),
                spread(Some(&names::ratio(&report.names, road, own, other))),
            ]);
        }
    }
    right(&mut table, 2);
    table
}

fn cpu(report: &Report) -> Table {
    let of = |road: Road, name: &str, download: bool| {
        let values: Vec<f64> = report
            .rounds
            .iter()
            .filter_map(|round| {
                let seen = round.get(&road)?;
                (if download { &seen.cpu_download } else { &seen.cpu_upload }).get(name).copied()
            })
            .collect();
        number(median(&values))
    };
    let mut names: Vec<&str> = Vec::new();
    for process in
        [Road::Tpx, Road::Floor, Road::Kubectl].iter().filter_map(|road| report.processes.get(road)).flatten()
    {
        if !names.contains(&process.name.as_str()) {
            names.push(&process.name);
        }
    }
    let mut table = table(
        ["CPU s/GiB", "tpx, down", "tpx, up", "floor, down", "floor, up", "kubectl, down", "kubectl, up"]
            .map(str::to_owned),
    );
    for name in names {
        table.add_row([
            name.to_owned(),
            of(Road::Tpx, name, true),
            of(Road::Tpx, name, false),
            of(Road::Floor, name, true),
            of(Road::Floor, name, false),
            of(Road::Kubectl, name, true),
            of(Road::Kubectl, name, false),
        ]);
    }
    right(&mut table, 1);
    table
}

fn memory(report: &Report) -> Table {
    let titles = ["MiB", "idle", "own", "PSS", "loaded", "own", "PSS", "idle CPU, % of a core"];
    let mut table = table(titles.map(str::to_owned));
    let three = |memory: Option<Memory>| match memory {
        Some(memory) => [memory.rss, memory.anonymous, memory.pss].map(|kib| format!("{:.1}", kib as f64 / 1024.0)),
        None => [const { String::new() }; 3],
    };
    for daemon in &report.daemons {
        let ([a, b, c], [d, e, f]) = (three(daemon.idle), three(daemon.loaded));
        let cpu = daemon.idle_cpu.map_or_else(String::new, |part| format!("{:.1}", part * 100.0));
        table.add_row([daemon.title(), a, b, c, d, e, f, cpu]);
    }
    right(&mut table, 1);
    table
}

fn full(report: &Report) -> Table {
    let mut titles: Vec<String> = vec!["many rules and flows".into(), String::new()];
    titles.extend(full::Table::ALL.map(full::Table::title));
    titles.push("full / empty".into());
    let mut table = table(titles);
    for metric in full::Metric::ALL {
        let (title, unit) = metric.title();
        let mut row = vec![title.to_owned(), unit.to_owned()];
        row.extend(full::Table::ALL.map(|way| number(middle(&report.full, way, metric))));
        row.push(spread(Some(&full::ratio(&report.full, metric))));
        table.add_row(row);
    }
    right(&mut table, 2);
    table
}

fn per_flow(report: &Report) -> Table {
    let mut table = table(["an open flow holds", "KiB", "of flows", "opened per second"].map(str::to_owned));
    if let Some(PerFlow { flows, seconds, kib }) = &report.per_flow {
        for (who, kib) in kib {
            let rate = number(Some(*flows as f64 / seconds));
            table.add_row([who.clone(), number(Some(*kib)), flows.to_string(), rate]);
        }
    }
    right(&mut table, 1);
    table
}

fn crowd(report: &Report) -> Table {
    let titles = ["tpx connect in a large cluster", "until ready, s", "until first byte, s", "times", "filled in, s"];
    let mut table = table(titles.map(str::to_owned));
    if let Some(crowd) = &report.crowd {
        let what = format!("{} namespaces, {} services", crowd.filled.namespaces, crowd.filled.services);
        let times = crowd.colds.len().to_string();
        let filled = number(Some(crowd.filled.seconds));
        table.add_row([what, number(crowd.ready()), number(crowd.first_byte()), times, filled]);
    }
    right(&mut table, 1);
    table
}

fn goals(report: &Report) -> Table {
    let mut table = table(["goal", "limit", "measured", ""].map(str::to_owned));
    for Goal { what, limit, value, met } in &report.goals {
        let met = match met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        };
        table.add_row([what.clone(), limit.clone(), number(*value), met.to_owned()]);
    }
    table
}

fn failures(report: &Report) -> impl Iterator<Item = String> {
    report.failures.iter().map(|failure| {
        let when = if failure.round == 0 { "before".to_owned() } else { format!("round {}", failure.round) };
        format!("{} ({when}): {}: {}", failure.who, failure.what, failure.error.replace('\n', " "))
    })
}

fn table(titles: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    table.set_header(titles);
    table
}

fn right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Three digits that count; nothing where there is no value.
pub(crate) fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 0.1 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

/// Median, least and greatest.
fn spread(ratios: Option<&Vec<f64>>) -> String {
    let Some(ratios) = ratios else { return "-".into() };
    let least = ratios.iter().copied().reduce(f64::min);
    let most = ratios.iter().copied().reduce(f64::max);
    match (median(ratios), least, most) {
        (Some(middle), Some(least), Some(most)) if ratios.len() > 1 => format!("{middle:.2} ({least:.2}-{most:.2})"),
        (middle, ..) => number(middle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown: Vec<_> = [1234.5, 98.76, 4.321, 0.04321].into_iter().map(|value| number(Some(value))).collect();
        assert_eq!(shown, ["1234", "98.8", "4.32", "0.043"]);
        assert_eq!(number(None), "-");
    }

    #[test]
    fn a_spread_has_its_ends() {
        assert_eq!(spread(Some(&vec![1.5, 0.5, 1.0])), "1.00 (0.50-1.50)");
        assert_eq!(spread(Some(&vec![1.5])), "1.50");
        assert_eq!(spread(None), "-");
    }
}
