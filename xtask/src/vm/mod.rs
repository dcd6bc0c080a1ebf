//! The kernel tests on an older kernel: `tests/netlab` in a machine that QEMU emulates, with a kernel that Debian packages.
//!
//! The machine has two processors, a serial console and nothing else: no disk and no network card. Its file system is an
//! archive in memory with the test program, what that needs, and the kernel's modules.

mod cpio;
mod modules;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::paths;
use crate::run::{output, start, step, visibly};
use crate::setup::Kernel;
use cpio::Cpio;

/// Loaded in the machine, with what they depend on.
const MODULES: [&str; 13] = [
    "tun",
    "veth",
    "dummy",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_objref",
    "nft_reject_inet",
];
/// What the tests start beside themselves.
const PROGRAMS: [&str; 4] = ["ip", "nft", "ping", "tc"];
/// Where things are mounted, or looked for.
const FOLDERS: [&str; 8] = ["/dev", "/etc", "/mnt", "/proc", "/run", "/sys", "/tmp", "/root"];
/// Which tests: each part of what programs, rules and sockets do, and how all of it goes away.
const SMOKE: [&str; 23] = [
    "loads",
    "without_features_the_floor_carries",
    "few_capabilities_suffice",
    "tcp_v4_v6_and_mapped_reach",
    "tcp_refused_unreachable_and_silent",
    "tcp_odd_syns_reach",
    "marks_keep_foreign_bits_and_come_off",
    "foreign_netns_is_untouched",
    "virtual_tcp_v4_v6_and_mapped",
    "udp_connected_v4_v6_and_mapped",
    "udp_unconnected_v6_and_mapped",
    "udp_refused_unreachable_and_too_big",
    "dns_udp_connected",
    "dns_tcp",
    "containers_reach_it_by_clsact",
    "containers_kill_9_by_clsact",
    "containers_as_a_scope_by_clsact",
    "floor_packets_come_and_go",
    "tun_road_answers_names",
    "apply_again_changes_the_difference",
    "apply_again_mends_what_was_removed",
    "drop_removes_all",
    "kill_9_leaves_nothing",
];
/// What the first process says last (`tests/vm`).
const END: &str = "vm: exit ";
/// An emulated processor is slow, and the machine under it may be busy.
const PATIENCE: Duration = Duration::from_secs(600);

/// Boots the kernel and runs the tests that match one of the filters, or the smoke test; their exit code.
pub(crate) fn run(kernel: &Kernel, filters: &[String]) -> Result<i32> {
    let filters = if filters.is_empty() { SMOKE.map(str::to_owned).to_vec() } else { filters.to_vec() };
    let (init, tests) = build()?;
    let folder = paths::target().join("vm");
    fs::create_dir_all(&folder)?;
    let archive = folder.join(format!("{}.cpio", kernel.release));
    step("file system of the emulated machine", || Ok(fs::write(&archive, pack(kernel, &init, &tests)?)?))?;
    let begin = Instant::now();
    let code = boot(kernel, &archive, &filters)?;
    println!("Linux {} under emulation: {:.0} s", kernel.release, begin.elapsed().as_secs_f32());
    Ok(code)
}

/// The first process and the test program.
fn build() -> Result<(PathBuf, PathBuf)> {
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).arg("--quiet").current_dir(paths::project());
        visibly(&mut cargo)?;
        // Again, for a program: nothing is left to build.
        output(cargo.args(["--message-format", "json"]))
    };
    let init = cargo(&["build", "-p", "tpx-vm-init"])?;
    let tests = cargo(&["test", "-p", "tpx-netlab", "--test", "host", "--no-run"])?;
    Ok((executable(&init, "tpx-vm-init")?, executable(&tests, "host")?))
}

/// The program that cargo says it built for the target of this name.
fn executable(messages: &str, target: &str) -> Result<PathBuf> {
    let built = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        (message["target"]["name"] == target).then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    built.with_context(|| format!("cargo built no {target}"))
}

fn pack(kernel: &Kernel, init: &Path, tests: &Path) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for folder in FOLDERS {
        cpio.folder(folder)?;
    }
    // What `ip` knows protocols from.
    cpio.file("/etc/protocols", b"icmp 1\ntcp 6\nudp 17\n")?;
    // The first process has its output there before it has mounted anything.
    cpio.characters("/dev/console", (5, 1))?;
    let mut libraries = Vec::new();
    let programs = PROGRAMS.map(|name| (format!("/bin/{name}"), which(name)));
    let own = [("/init".to_owned(), Ok(init.to_owned())), ("/tests".to_owned(), Ok(tests.to_owned()))];
    for (at, program) in own.into_iter().chain(programs) {
        let program = program?;
        cpio.file(&at, &stripped(&program)?)?;
        libraries.extend(libraries_of(&program)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        cpio.file(&library, &fs::read(&library)?)?;
    }
    for (nth, (name, module)) in modules::closure(&kernel.modules(), &MODULES)?.into_iter().enumerate() {
        cpio.file(&format!("/modules/{nth:02}-{name}.ko"), &module)?;
    }
    cpio.finish()
}

fn which(program: &str) -> Result<PathBuf> {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(Path::new);
    let found = folders.iter().map(|folder| folder.join(program)).find(|path| path.exists());
    found.with_context(|| format!("{program} is missing: run `cargo xtask setup`"))
}

/// A program without what only a debugger wants: three quarters of it.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let to = paths::target().join("vm/stripped");
    output(Command::new("strip").arg("-o").arg(&to).arg(program))?;
    Ok(fs::read(&to)?)
}

/// The shared libraries that a program is loaded with, as `ldd` says: `name => path (address)` or `path (address)`.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let said = output(Command::new("ldd").arg(program))?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    Ok(said.lines().filter_map(path).collect())
}

fn boot(kernel: &Kernel, archive: &Path, filters: &[String]) -> Result<i32> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    // In software even where there is /dev/kvm: inside another virtual machine that may not know every instruction, and
    // stops in the middle.
    qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(archive);
    qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 -- {}", filters.join(" ")));
    let mut machine = start(qemu.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let (tell, told) = channel();
    let console = BufReader::new(machine.stdout.take().context("no console")?);
    let reader = std::thread::spawn(move || {
        // Whoever prints to a console prints what it likes: not all of it is UTF-8.
        for line in console.split(b'\n').map_while(Result::ok) {
            let _ = tell.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    let (end, mut code, mut empty) = (Instant::now() + PATIENCE, None, false);
    let over = loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                empty |= line == "running 0 tests";
                if let Some(said) = line.strip_prefix(END) {
                    code = said.trim().parse().ok();
                }
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    machine.kill().ok();
    machine.wait()?;
    reader.join().ok();
    match code {
        Some(_) if empty => bail!("a filter matches no test"),
        Some(code) => Ok(code),
        None if over => bail!("the emulated machine did not come to an end within {} s", PATIENCE.as_secs()),
        None => bail!("the emulated machine broke down"),
    }
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn cargo_says_what_it_built() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"host"},"executable":"/t/deps/host-1"}
{"reason":"compiler-artifact","target":{"name":"nix"},"executable":null}
not json"#;
        assert_eq!(executable(messages, "host").unwrap(), std::path::Path::new("/t/deps/host-1"));
        assert!(executable(messages, "nix").is_err());
    }
}
