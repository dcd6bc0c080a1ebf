//! `cargo xtask bench`, after everything is built and the lab is up: tpx by each of its datapaths next to `kubectl
//! port-forward` and to a direct connection, the datapaths alone next to plain loopback, and tpx's name server next to
//! dnsmasq, in one run, interleaved round by round; then what large numbers cost.

mod bare;
mod conditions;
mod crowd;
mod flows;
mod full;
mod grid;
mod lab;
mod names;
mod plot;
mod procs;
mod render;
mod report;
mod roads;
mod rounds;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use conditions::Conditions;
use lab::Lab;
use report::Report;
use rounds::{Amount, Subject};

#[derive(Parser)]
#[command(name = "tpx-bench", about)]
struct Cli {
    /// Two short rounds: enough to see that all works
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Parts to measure, separated by commas: all when not given
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Subject>,
    /// Where report.json, report.md and the plots go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The lab's name
    #[arg(long, default_value = "lab")]
    name: String,
    /// The program that reaches the lab
    #[arg(long, env = "TPX_XTASK", value_name = "FILE")]
    xtask: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Tables
    Table,
    /// The same as report.json
    Json,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let cli = Cli::parse();
    ensure!(rustix::process::geteuid().is_root(), "this needs root: it reads what other users' processes hold");
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let rounds = cli.rounds.map_or(if cli.quick { 2 } else { 5 }, usize::from);
    let amount = if cli.quick {
        Amount { rounds, transfer: 0.7, burst: 0.5, pings: 2000, busy_pings: 200, idle: 5.0 }
    } else {
        Amount { rounds, transfer: 2.0, burst: 1.5, pings: 3000, busy_pings: 1000, idle: 10.0 }
    };
    let wanted = if cli.only.is_empty() { Subject::all() } else { cli.only.into_iter().collect() };
    let lab = Lab::new(cli.xtask, &cli.name)?;
    let mut conditions = Conditions::now(&lab, rounds, cli.quick, wanted.clone());
    let raw = rounds::run(&lab, amount, &wanted, &interrupted)?;
    conditions.ended();
    let report = Report::new(conditions, raw);
    let json = serde_json::to_string_pretty(&report)?;
    fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
    let mut files = vec![("report.json", json.clone()), ("report.md", render::markdown(&report))];
    if report.conditions.measured.contains(&Subject::Roads) {
        files.extend([("roads.svg", plot::roads(&report)), ("memory.svg", plot::memory(&report))]);
    }
    if report.conditions.measured.contains(&Subject::Datapaths) {
        files.push(("bare.svg", plot::bare(&report)));
    }
    for (name, text) in files {
        let file = cli.out.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match cli.format {
        Format::Table => print!("{}", render::text(&report)),
        Format::Json => println!("{json}"),
    }
    eprintln!("report and plots: {}", cli.out.display());
    Ok(())
}
