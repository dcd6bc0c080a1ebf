//! Running a program inside a part of the lab, as if it had been typed there.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result, bail};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::ThreadNameSpaceType as Ns;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::config::{Lab, Part, QUERY_LOG, RUN_LAB, USERS};
use super::{cgroup, node, state};
use crate::paths;
use crate::sys::{self, Entry};

/// Variables that go along into the lab; nothing else of the caller's environment does.
const KEPT: [&str; 6] = ["TERM", "LANG", "LC_ALL", "RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"];

/// Who runs the program, and with what.
pub(crate) struct As {
    /// A user of the laptop; root when not given.
    pub(crate) user: Option<String>,
    /// `release` or `debug`: whose programs come first on the path.
    pub(crate) profile: Option<String>,
}

/// A command that starts inside `part`; it still has to be started in its PID namespace.
pub(crate) fn command(lab: &Lab, part: Part, who: &As, program: &[OsString]) -> Result<Command> {
    if let Some(first) = lab.first().filter(|_| !lab.parts().contains(&part)) {
        bail!("{} is a second cluster, a node alone; its {} is that of --name {}", lab.name, part.as_str(), first.name);
    }
    let pid = state::pid(lab, part)?;
    let (first, rest) = program.split_first().context("no command given")?;
    let user = match &who.user {
        None => None,
        Some(name) => Some(
            USERS
                .iter()
                .find(|(user, _)| user == name)
                .map(|(_, id)| *id)
                .with_context(|| format!("the laptop has no user {name}: dev and mallory are there"))?,
        ),
    };
    let mut command = Command::new(first);
    command.args(rest).env_clear();
    for name in KEPT {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TPX_")));
    let name = who.user.clone().unwrap_or_else(|| "root".into());
    command.env("USER", &name).env("LOGNAME", &name).env("SHELL", "/bin/bash").env("TPX_LAB", &lab.name);
    let mut cwd = String::from("/");
    match part {
        Part::Laptop => {
            show(pid, &lab.query_log(), QUERY_LOG)?;
            let programs = show_programs(pid, who.profile.as_deref())?;
            let home = user.map_or_else(|| format!("{RUN_LAB}/root"), |_| format!("/home/{name}"));
            command.env(
                "PATH",
                format!("{programs}:{RUN_LAB}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            );
            command.env("KUBECONFIG", format!("{RUN_LAB}/kubeconfig")).env("TPX_QUERY_LOG", QUERY_LOG);
            command
                .env("HOME", &home)
                .env("XDG_RUNTIME_DIR", user.map_or_else(|| "/run".into(), |id| format!("/run/user/{id}")));
            cwd = home;
        }
        Part::Node => {
            command.env("PATH", node::path()).env("KUBECONFIG", lab.pki().join("admin.kubeconfig")).env("HOME", "/run");
            command.env("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock").env("CONTAINERD_NAMESPACE", "k8s.io");
        }
        Part::Internet => {
            command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/run");
        }
    }
    let which = Ns::MOUNT
        | Ns::NETWORK
        | Ns::HOST_NAME_AND_NIS_DOMAIN_NAME
        | Ns::INTER_PROCESS_COMMUNICATION
        | Ns::CONTROL_GROUP;
    let entry = Entry {
        cgroups: vec![cgroup::join(lab, part)?],
        enter: Some((sys::pidfd(pid)?, which)),
        user: user.map(|id| (id, vec![id])),
        cwd: Some(CString::new(cwd)?),
        die_with_parent: true,
        ..Entry::default()
    };
    sys::enter(&mut command, entry);
    Ok(command)
}

/// Starts such a command.
pub(crate) fn spawn(lab: &Lab, part: Part, command: &mut Command) -> Result<Child> {
    use std::os::fd::AsFd;
    sys::spawn_in_pid_namespace(sys::pidfd(state::pid(lab, part)?)?.as_fd(), command)
}

/// Runs one to its end and returns what a shell would call its exit code. Signals sent to this process go on to it.
pub(crate) fn run(lab: &Lab, part: Part, who: &As, program: &[OsString]) -> Result<i32> {
    let mut command = command(lab, part, who, program)?;
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])?;
    let mut child = spawn(lab, part, &mut command)?;
    let pid = child.id().cast_signed();
    // A terminal sends its signals to the whole foreground group itself.
    let terminal = std::io::stdin().is_terminal();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let signal = rustix::process::Signal::from_named_raw(signal);
            let (Some(signal), Some(pid)) = (signal, rustix::process::Pid::from_raw(pid)) else { continue };
            if !(terminal && matches!(signal, rustix::process::Signal::INT | rustix::process::Signal::QUIT)) {
                rustix::process::kill_process(pid, signal).ok();
            }
        }
    });
    let status: ExitStatus = child.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Makes cargo's output visible in the laptop and returns where the programs of the chosen profile are.
///
/// The folder may have been made, or made anew, since the laptop came up, and it may lie under one that the laptop covers with its own, so
/// the mount is carried in from outside. Its place has a name of its own: builds with different output do not get in each other's way.
fn show_programs(laptop: u32, wanted: Option<&str>) -> Result<String> {
    let built = |profile: &str| paths::target().join(profile).join("tpx").exists();
    let profile = match wanted {
        Some("debug") => "debug",
        None if !built("release") && built("debug") => "debug",
        _ => "release",
    };
    let source = paths::target().join(profile);
    let Ok(about) = fs::metadata(&source) else { return Ok(format!("{RUN_LAB}/bin")) };
    let target = format!("{RUN_LAB}/{profile}-{}", about.ino());
    show(laptop, &source, &target)?;
    Ok(target)
}

/// Makes a file or folder visible in the laptop, unless it is.
fn show(laptop: u32, source: &Path, target: &str) -> Result<()> {
    let inside = PathBuf::from(format!("/proc/{laptop}/root{target}"));
    let about = fs::metadata(source)?;
    if about.is_dir() {
        fs::create_dir_all(&inside)?;
    } else if !inside.exists() {
        fs::write(&inside, "")?;
    }
    if fs::metadata(&inside)?.ino() == about.ino() {
        return Ok(());
    }
    carry_in(laptop, source, target).with_context(|| format!("cannot show {} in the laptop", source.display()))
}

/// Takes a detached copy of a mount here and attaches it inside.
fn carry_in(laptop: u32, source: &Path, target: &str) -> Result<()> {
    let tree = open_tree(rustix::fs::CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let process = sys::pidfd(laptop)?;
    // A thread with a file-system view of its own may enter another mount namespace; the rest of the process stays.
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || -> Result<()> {
            sys::own_file_system_view()?;
            rustix::thread::move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&process), Ns::MOUNT)?;
            Ok(move_mount(&tree, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        });
        inside.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}
