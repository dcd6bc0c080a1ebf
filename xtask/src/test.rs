//! All tests, in tiers: 0 runs anywhere, 1 in namespaces of an ordinary user, 2 needs root and eBPF, 3 a real cluster.
//!
//! A crate's own tests see the highest tier that has to run in `TPX_REQUIRE_TIER`; below it nothing may be skipped.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::demo::build_programs;
use crate::lab::Lab;
use crate::run::{output, shown, step, visibly};
use crate::{elevate, image, paths, platforms, purity, setup};

/// Tests passed, failed and ignored.
#[derive(Default)]
struct Count {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Runs that ended badly, whatever they counted.
    broken: Vec<String>,
}

/// Runs every tier up to `tier`; the exit code is 0 when nothing failed.
pub(crate) fn run(lab: &Lab, tier: u8) -> Result<i32> {
    let mut count = Count::default();
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).current_dir(paths::project()).env("TPX_REQUIRE_TIER", tier.to_string());
        cargo
    };
    if tier > 0 {
        setup::all()?;
    }
    count.check(&mut cargo(&["fmt", "--all", "--check"]))?;
    count.check(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    for other_machine in [purity::build(), platforms::check()] {
        match other_machine {
            Ok(mut build) => count.check(&mut build)?,
            Err(missing) if tier == 0 => {
                println!("ignored: {missing}");
                count.ignored += 1;
            }
            Err(missing) => return Err(missing),
        }
    }
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    if tier >= 2 && !rustix::process::geteuid().is_root() {
        tests.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    }
    count.tests(&mut tests)?;
    if tier >= 2 {
        count.tests(elevate::own().arg("vm"))?;
    }
    // A million damaged messages, or a minute of them.
    count.check(&mut cargo(&["run", "--quiet", "-p", "tpx-fuzz"]))?;
    if tier >= 3 {
        cluster(lab, &mut count)?;
    }
    println!();
    for what in &count.broken {
        println!("failed: {what}");
    }
    println!("{} passed, {} failed, {} ignored (tier {tier})", count.passed, count.failed, count.ignored);
    Ok(i32::from(count.failed > 0 || !count.broken.is_empty()))
}

/// The tests in the lab's laptop, as root there, against its cluster.
fn cluster(lab: &Lab, count: &mut Count) -> Result<()> {
    build_programs(&["tpx", "tpx-rootd", "tpx-cluster-tests", "tpx-workload"])?;
    step("static Go program", || {
        // A program with a resolver and a network stack of its own, next to ours in the laptop.
        let mut go = Command::new(setup::go()?);
        go.args(["build", "-trimpath", "-o"]).arg(paths::target().join("release/tpx-go-dial")).arg("dial.go");
        output(
            go.env("CGO_ENABLED", "0")
                .env("GOFLAGS", "")
                .env("GO111MODULE", "off")
                .current_dir(paths::project().join("tests/cluster/programs")),
        )
    })?;
    image::build()?;
    image::build_other_manager()?;
    ensure!(elevate::visibly(&["lab", "up", "--second", "--name", &lab.name])?, "the lab is not up");
    let exec = |words: &[&str]| {
        elevate::this([&["lab", "exec", "laptop", "--profile", "release", "--name", &lab.name, "--"], words].concat())
    };
    visibly(&mut exec(&["tpx", "manager", "install"])?)?;
    // Everything twice: by the express lane, and by the floor alone.
    for datapath in ["auto", "tun"] {
        let mut tests = exec(&["tpx-cluster-tests"])?;
        tests.env("TPX_REQUIRE_TIER", "3").env("TPX_DATAPATH", datapath);
        tests.env("TPX_GO_DIAL", "tpx-go-dial").env("TPX_OTHER_MANAGER", image::OTHER_MANAGER);
        count.tests(&mut tests)?;
    }
    Ok(())
}

impl Count {
    /// Runs something that counts as one test.
    fn check(&mut self, command: &mut Command) -> Result<()> {
        println!("$ {}", shown(command));
        if command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {}", shown(command)))?.success()
        {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.broken.push(shown(command));
        }
        Ok(())
    }

    /// Runs something that prints `test result:` lines, and adds them up.
    fn tests(&mut self, command: &mut Command) -> Result<()> {
        println!("$ {}", shown(command));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", shown(command)))?;
        for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let line = line?;
            println!("{line}");
            self.add(&line);
        }
        if !child.wait()?.success() {
            self.broken.push(shown(command));
        }
        Ok(())
    }

    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for part in counts.split("; ") {
            match part.split_once(' ').and_then(|(number, what)| Some((number.parse::<u32>().ok()?, what))) {
                Some((number, "passed")) => self.passed += number,
                Some((number, "failed")) => self.failed += number,
                Some((number, "ignored")) => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn results_add_up() {
        let mut count = Count::default();
        for line in [
            "running 2 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored",
        ] {
            count.add(line);
        }
        assert_eq!((count.passed, count.failed, count.ignored), (4, 2, 1));
    }
}
