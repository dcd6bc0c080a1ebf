//! `cargo xtask bench`: builds what is measured, brings the lab up, and becomes `tpx-bench`.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use rustix::stdio::dup2_stdout;

use crate::demo::build_programs;
use crate::lab::Lab;
use crate::{elevate, image, paths, setup};

/// As `tpx-bench` calls them: what it would refuse is refused before anything is built.
const PARTS: [&str; 5] = ["roads", "datapaths", "tables", "flows", "crowd"];

/// What is handed on to `tpx-bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Two short rounds: enough to see that all works
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Parts to measure, separated by commas: all when not given
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = PARTS)]
    only: Vec<String>,
    /// Where report.json, report.md and the plots go; target/bench when not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What is printed at the end
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
}

/// Comes back only when something is missing.
pub(crate) fn run(lab: &Lab, options: &Options) -> Result<()> {
    // Whoever reads JSON finds nothing else on standard output.
    let stdout = rustix::io::fcntl_dupfd_cloexec(std::io::stdout().as_fd(), 3)?;
    if options.format == "json" {
        dup2_stdout(std::io::stderr().as_fd())?;
    }
    setup::all()?;
    build_programs(&["tpx", "tpx-rootd", "tpx-bench"])?;
    image::build()?;
    ensure!(elevate::visibly(&["lab", "up", "--second", "--name", &lab.name])?, "the lab is not up");
    dup2_stdout(&stdout)?;

    let out = options.out.clone().unwrap_or_else(|| paths::target().join("bench"));
    // Made as whoever asked, so that they may remove what root writes into it.
    fs::create_dir_all(&out)?;
    let mut bench = elevate::program(&paths::target().join("release/tpx-bench"));
    bench.arg("--xtask").arg(std::env::current_exe()?).arg("--out").arg(out).args(["--name", &lab.name]);
    bench.args(["--format", &options.format]);
    bench.args(options.quick.then_some("--quick"));
    bench.args((!options.only.is_empty()).then(|| format!("--only={}", options.only.join(","))));
    bench.args(options.rounds.map(|rounds| format!("--rounds={rounds}")));
    // In its place, so that a signal meant for this ends that.
    Err(bench.exec().into())
}
