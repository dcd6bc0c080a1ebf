//! `tpx`: the command line, and the user daemon that it starts.
//!
//! The command line parses, starts the daemons and prints; the user daemon holds the connection: Kubernetes, the
//! tunnel, names, flows. What needs privilege is asked of `tpx-rootd`.

mod cgroup;
mod cli;
mod config;
mod failure;
mod ipc;
mod paths;
mod userd;

fn main() -> std::process::ExitCode {
    cli::main()
}
