//! The project's own tools: what a fresh machine needs, the lab, the images, the demo and the tests.

mod bench;
mod demo;
mod elevate;
mod image;
mod lab;
mod paths;
mod platforms;
mod purity;
mod run;
mod setup;
mod sys;
mod test;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use lab::{As, Lab, Part};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need: packages, the eBPF toolchain, the cluster's programs
    Setup {
        /// Only what building tpx needs, not the lab
        #[arg(long)]
        build: bool,
    },
    /// A real Kubernetes, a laptop and a rest of the world, in namespaces
    #[command(subcommand)]
    Lab(LabCommand),
    /// Build the container images and load them into a lab that is up
    Image(Name),
    /// From nothing to a page fetched from the cluster, with every command shown
    Demo {
        #[command(flatten)]
        lab: Name,
        /// Use this cluster instead of the lab's own; the lab's workloads must be in it
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<String>,
    },
    /// Run the tests
    Test {
        /// The highest tier: 0 anywhere, 1 namespaces, 2 root and eBPF, 3 a real cluster
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=3))]
        tier: u8,
        #[command(flatten)]
        lab: Name,
    },
    /// Measure tpx next to kubectl port-forward and a direct connection, its datapaths next to plain loopback, its name server
    /// next to dnsmasq
    Bench {
        #[command(flatten)]
        options: bench::Options,
        #[command(flatten)]
        lab: Name,
    },
    /// Check that what is meant for macOS and Windows compiles
    Platforms,
    /// Run the kernel's tests on an older kernel, in an emulated machine
    Vm {
        /// Parts of the names of tests; without any the smoke test
        filters: Vec<String>,
    },
    #[command(hide = true)]
    LabInit {
        part: Part,
        #[command(flatten)]
        lab: Name,
    },
}

#[derive(Args)]
struct Name {
    /// The lab's name; labs with different names can be up at once
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Bring it up; does nothing when it is up
    Up {
        #[command(flatten)]
        lab: Name,
        /// Also a second cluster with the same subnets and workloads, in reach of the same laptop; its name ends in -second
        #[arg(long)]
        second: bool,
    },
    /// Take it down, its second cluster too: no process, namespace, cgroup, mount or link stays
    Down(Name),
    /// Load images that were built since it last did, and restart what runs them
    Refresh(Name),
    /// Show whether it is up, and every name and address in it
    Status {
        #[command(flatten)]
        lab: Name,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a program inside a part of the lab
    Exec {
        /// Where
        part: Part,
        /// As this user of the laptop (dev, mallory) instead of root
        #[arg(long)]
        user: Option<String>,
        /// Put this profile's programs on the path: release or debug
        #[arg(long, value_parser = ["release", "debug"])]
        profile: Option<String>,
        #[command(flatten)]
        lab: Name,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<i32> {
    match command {
        Command::Setup { build: true } => setup::build()?,
        Command::Setup { build: false } => setup::all()?,
        Command::Lab(command) => return run_lab(command),
        Command::Image(Name { name }) => {
            image::build()?;
            if Lab::new(&name)?.state().exists() {
                return Ok(i32::from(!elevate::visibly(&["lab", "refresh", "--name", &name])?));
            }
        }
        Command::Demo { lab: Name { name }, kubeconfig } => demo::run(&Lab::new(&name)?, kubeconfig)?,
        Command::Test { tier, lab: Name { name } } => return test::run(&Lab::new(&name)?, tier),
        Command::Bench { options, lab: Name { name } } => bench::run(&Lab::new(&name)?, &options)?,
        Command::Platforms => run::visibly(&mut platforms::check()?)?,
        Command::Vm { filters } => return vm::run(&setup::need_kernel()?, &filters),
        Command::LabInit { part, lab: Name { name } } => lab::init(&Lab::new(&name)?, part)?,
    }
    Ok(0)
}

fn run_lab(command: LabCommand) -> Result<i32> {
    if let LabCommand::Up { lab: Name { name }, second } = &command {
        lab::build(&Lab::new(name)?, *second)?;
    }
    if let Some(code) = elevate::again()? {
        return Ok(code);
    }
    match command {
        LabCommand::Up { lab: Name { name }, second } => lab::up(&Lab::new(&name)?, second)?,
        LabCommand::Down(Name { name }) => lab::down(&Lab::new(&name)?)?,
        LabCommand::Refresh(Name { name }) => lab::refresh_images(&Lab::new(&name)?)?,
        LabCommand::Status { lab: Name { name }, json } => return lab::status(&Lab::new(&name)?, json),
        LabCommand::Exec { part, user, profile, lab: Name { name }, program } => {
            return lab::exec(&Lab::new(&name)?, part, &As { user, profile }, &program);
        }
    }
    Ok(0)
}
