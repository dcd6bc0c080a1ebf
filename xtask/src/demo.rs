//! The whole road once, with every command shown before its output.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, Part};
use crate::run::{step, visibly};
use crate::{elevate, image, paths, setup};

/// What the page of the demo is called.
const TITLE: &str = "<title>Emoji Vote</title>";

/// Where the commands run.
enum Stage<'a> {
    /// In the lab's laptop, as its user.
    Laptop(&'a Lab),
    /// On this machine, with a cluster that is somebody's own.
    Here { kubeconfig: String },
}

/// Builds everything, brings the lab up and walks through it. With a kubeconfig it walks through that cluster instead, which
/// has a Service `web-app` in `emojivoto` already.
pub(crate) fn run(lab: &Lab, kubeconfig: Option<String>) -> Result<()> {
    setup::all()?;
    build_programs(&["tpx", "tpx-rootd"])?;
    let stage = match kubeconfig {
        Some(kubeconfig) => Stage::Here { kubeconfig },
        None => {
            image::build()?;
            ensure!(elevate::visibly(&["lab", "up", "--name", &lab.name])?, "the lab is not up");
            Stage::Laptop(lab)
        }
    };
    let walked = walk(&stage);
    if walked.is_err() {
        // Whatever went wrong, the laptop is left as it was found.
        stage.command(&["tpx", "quit"])?.stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
    walked?;
    println!("\nThe page was fetched by name, by ClusterIP and by pod IP.");
    if let Stage::Laptop(lab) = stage {
        let name = if lab.name == "lab" { String::new() } else { format!("--name {} ", lab.name) };
        println!("The lab stays up. Enter it: cargo xtask lab exec {name}{} --user dev -- bash", Part::Laptop.as_str());
    }
    Ok(())
}

/// The release build of some packages, its programs shown in the laptop.
pub(crate) fn build_programs(packages: &[&str]) -> Result<()> {
    step(&format!("release build of {}", packages.join(", ")), || {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--release"]).current_dir(paths::project());
        visibly(cargo.args(packages.iter().flat_map(|package| ["-p", package])))
    })
}

fn walk(stage: &Stage) -> Result<()> {
    stage.show(&["tpx", "manager", "install"])?;
    stage.show(&["tpx", "connect"])?;
    stage.page("web-app.emojivoto:80")?;
    let service = stage.ask(&[
        "kubectl",
        "get",
        "service",
        "web-app",
        "-n",
        "emojivoto",
        "-o",
        "jsonpath={.spec.clusterIPs[*]}",
    ])?;
    for address in service.split_whitespace() {
        stage.page(&at(address, 80))?;
    }
    let ready = "jsonpath={.items[0].status.podIP}";
    let pod = stage.ask(&[
        "kubectl",
        "get",
        "pods",
        "-n",
        "emojivoto",
        "-l",
        "app=web",
        "--field-selector=status.phase=Running",
        "-o",
        ready,
    ])?;
    stage.page(&at(pod.trim(), 8080))?;
    stage.show(&["tpx", "status"])?;
    stage.show(&["tpx", "maps", "dump"])?;
    stage.show(&["tpx", "quit"])
}

/// An address and a port as a URL has them.
fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

impl Stage<'_> {
    fn command(&self, words: &[&str]) -> Result<Command> {
        match self {
            Stage::Laptop(lab) => {
                let exec = [
                    "lab",
                    "exec",
                    Part::Laptop.as_str(),
                    "--user",
                    "dev",
                    "--profile",
                    "release",
                    "--name",
                    &lab.name,
                    "--",
                ];
                elevate::this([&exec, words].concat())
            }
            Stage::Here { kubeconfig } => {
                let (program, arguments) = words.split_first().context("no command")?;
                let own = paths::target().join("release").join(program);
                let kubectl = paths::cluster_bin().join(program);
                let found = [own, kubectl].into_iter().find(|path| path.exists());
                let mut command = found.map_or_else(|| Command::new(program), Command::new);
                command.args(arguments).env("KUBECONFIG", kubeconfig);
                Ok(command)
            }
        }
    }

    /// Shows a command and then what it prints.
    fn show(&self, words: &[&str]) -> Result<()> {
        println!("\n$ {}", words.join(" "));
        let status = self.command(words)?.stdin(Stdio::null()).status()?;
        if !status.success() {
            bail!("{} failed ({status})", words.join(" "));
        }
        Ok(())
    }

    /// Shows a command, what it prints, and returns that.
    fn ask(&self, words: &[&str]) -> Result<String> {
        println!("\n$ {}", words.join(" "));
        let output = self.command(words)?.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{}", text.trim_end());
        ensure!(output.status.success(), "{} failed ({})", words.join(" "), output.status);
        Ok(text)
    }

    /// Fetches the page, which has to be the cluster's.
    fn page(&self, address: &str) -> Result<()> {
        let page = self.ask(&["curl", "--silent", "--show-error", "--max-time", "15", address])?;
        ensure!(page.contains(TITLE), "{address} is not the page {TITLE}");
        Ok(())
    }
}
