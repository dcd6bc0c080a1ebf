//! A process of its own that owns a datapath, to be killed or to have few capabilities.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tpx_core::plan::Plan;
use tpx_datapath::{
    Host as _,
    linux::{Feature, LinuxHost, Slot, needs_perfmon},
};
use tpx_netlab::World;

use crate::relay::Relay;

const PLAN: &str = "TPX_NETLAB_PLAN";
const FEW: &str = "TPX_NETLAB_FEW_CAPABILITIES";
const CLSACT: &str = "TPX_NETLAB_CLSACT";

/// Whether this process is such an owner.
pub(crate) fn asked() -> bool {
    env::var_os(PLAN).is_some()
}

/// The owner: applies the plan, says which map tells its programs, serves until it is killed or its input ends.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("failed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let plan: Plan = serde_json::from_str(&env::var(PLAN)?)?;
    if env::var_os(FEW).is_some() {
        let mut few = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        few.set(CapabilitySet::PERFMON, needs_perfmon());
        set_capabilities(None, CapabilitySets { effective: few, permitted: few, inheritable: CapabilitySet::empty() })?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut host = LinuxHost::new(Slot::FIRST);
        if env::var_os(CLSACT).is_some() {
            host = host.without([Feature::Tcx]);
        }
        let handover = host.apply(&plan).await?;
        let held: Box<dyn std::any::Any> = match &handover.express {
            Some(files) => {
                println!("{}", aya::maps::MapData::from_fd(files.counters.try_clone()?)?.info()?.id());
                Box::new(Relay::spawn(host, handover)?)
            }
            // No map has this number.
            None => {
                println!("0");
                Box::new((host, handover))
            }
        };
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        end.await??;
        drop(held);
        Ok(())
    })
}

/// Starts an owner and waits until its plan is applied.
pub(crate) fn start(world: &World, plan: &Plan, few_capabilities: bool) -> Result<Child> {
    spawn(world, plan, few_capabilities.then_some(FEW))
}

/// Starts one with all capabilities that attaches to devices as old kernels do.
pub(crate) fn start_with_clsact(world: &World, plan: &Plan) -> Result<Child> {
    spawn(world, plan, Some(CLSACT))
}

fn spawn(world: &World, plan: &Plan, switch: Option<&str>) -> Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.env(PLAN, serde_json::to_string(plan)?).stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Some(switch) = switch {
        command.env(switch, "1");
    }
    let mut child = command.spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    match line.trim().parse() {
        Ok(map) => world.expect_gone_id(map),
        Err(_) => {
            child.wait()?;
            anyhow::bail!("the owner: {}", line.trim());
        }
    }
    Ok(child)
}
