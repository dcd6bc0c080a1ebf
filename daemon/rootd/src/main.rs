//! `tpx-rootd`: does for the user daemon what needs privilege, and undoes it.
//!
//! Verbs only: it knows plans and files. Bytes of applications, names, certificates and Kubernetes stay with the user.

mod conversation;
mod hosts;
mod owner;
mod pace;
mod privilege;
mod seccomp;
mod serve;
mod service;
mod sessions;
mod socket;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tpx_datapath::linux::{Ahead, Feature, probe, sweep};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The privileged half of tpx.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// What to log to standard error: a level, or TARGET=LEVEL pairs with commas.
    #[arg(long, global = true, env = "RUST_LOG", default_value = "info")]
    log: Targets,
}

#[derive(Subcommand)]
enum Command {
    /// Serves one user's tpx until it is stopped.
    Serve(Serve),
    /// Makes it a systemd service that serves one user, so that no password is asked when connecting.
    Install {
        /// The user to serve, by number or name. Without it: who called sudo, else who runs this.
        #[arg(long, value_name = "USER")]
        owner: Option<String>,
    },
    /// Stops and removes the systemd service.
    Uninstall,
}

#[derive(clap::Args)]
struct Serve {
    /// Where to listen.
    #[arg(long, default_value = tpx_datapath::remote::SOCKET)]
    socket: PathBuf,
    /// The user to serve, by number or name. Without it: who called sudo, else who runs this.
    #[arg(long, value_name = "UID|NAME", env = "TPX_OWNER")]
    owner: Option<String>,
    /// Leaves when the last connection has ended, or when none comes within 30 seconds.
    #[arg(long)]
    exit_when_idle: bool,
    /// Keeps all system calls, to find out whether the filter is in the way of something.
    #[arg(long, hide = true)]
    no_seccomp: bool,
    /// Does as if the kernel lacked these features, to see what is done then.
    #[arg(long, hide = true, value_delimiter = ',', value_name = "FEATURE,...")]
    without: Vec<Feature>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::registry()
        .with(arguments.log)
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false)
                .without_time(),
        )
        .init();
    let done = match arguments.command {
        Command::Serve(serve) => run(&serve),
        Command::Install { owner } => owner::resolve(owner.as_deref()).and_then(service::install),
        Command::Uninstall => service::uninstall(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tpx-rootd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Serve) -> anyhow::Result<()> {
    let owner = owner::resolve(arguments.owner.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("event loop")?;
    runtime.block_on(async {
        let socket = socket::bind(&arguments.socket, owner)?;
        privilege::drop_all_but_network()?;
        let features = probe(&arguments.without);
        let unavailable = features.express_lane(owner).err();
        if !arguments.no_seccomp {
            seccomp::install()?;
        }
        if let Err(e) = sweep().await {
            tracing::warn!("what a killed tpx-rootd may have left behind was not removed: {e}");
        }
        match &unavailable {
            None => tracing::info!("serving user {owner} at {}", arguments.socket.display()),
            Some(why) => tracing::warn!("serving user {owner}, but without the express lane: {why}"),
        }
        for lacking in &features.missing {
            tracing::info!("the kernel has no {}: {}", lacking.about(), lacking.fallback());
        }
        // Started for a connection that is being made.
        let ahead = arguments.exit_when_idle.then(Ahead::start);
        let hosts = hosts::LinuxHosts::new(ahead, arguments.without.clone());
        let missing = features.missing.into_iter().map(Into::into).collect();
        let sessions = sessions::Sessions::new(hosts, owner, unavailable)
            .on_a_kernel_without(missing)
            .staying(!arguments.exit_when_idle);
        serve::serve(socket, sessions, arguments.exit_when_idle).await
    })
}
