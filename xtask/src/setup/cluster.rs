//! Kubernetes, etcd, kubectl and CoreDNS, built from their Go modules. It takes minutes, once.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::debian;
use super::versions::GO_FETCHES_TOOLCHAINS;
use crate::paths;
use crate::run::{output, step};

/// Program, package in the module, module whose version it reports.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("kubeall", ".", "k8s.io/kubernetes"),
    ("kubectl", "./kubectl", "k8s.io/kubernetes"),
    ("coredns", "./coredns", "github.com/coredns/coredns"),
];

/// Builds them when the module has changed since the last build.
pub(crate) fn programs() -> Result<()> {
    let module = Module::read()?;
    let kubernetes = module.version("k8s.io/kubernetes")?;
    let stamp = paths::cluster_bin().join(".module");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == module.hash)
        && PROGRAMS.iter().all(|(name, ..)| paths::cluster_bin().join(name).exists())
    {
        println!("Kubernetes {kubernetes}: ok");
        return Ok(());
    }
    let go = step("Go", || Go::find(&module))?;
    fs::create_dir_all(paths::cluster_bin())?;
    step(&format!("Kubernetes {kubernetes}: downloading"), || output(go.command(&module).args(["mod", "download"])))?;
    for (name, package, reports) in PROGRAMS {
        let version = module.version(reports)?;
        step(&format!("{name} {version}: building"), || {
            let mut build = go.command(&module);
            // Other work on this machine goes first, and an unfinished program is never found under its name.
            let new = paths::cluster_bin().join(format!(".{name}"));
            build
                .args([
                    "build",
                    "-mod=readonly",
                    "-trimpath",
                    "-buildvcs=false",
                    "-tags=providerless",
                    "-ldflags",
                    &flags(reports, &version),
                ])
                .arg("-o")
                .arg(&new)
                .arg(package);
            output(&mut build)?;
            Ok(fs::rename(&new, paths::cluster_bin().join(name))?)
        })?;
    }
    Ok(fs::write(&stamp, &module.hash)?)
}

/// The Go that builds them; other programs may use it too.
pub(crate) fn go() -> Result<PathBuf> {
    Ok(Go::find(&Module::read()?)?.program)
}

/// No symbols, and the version that the project's own build would have put in.
fn flags(module: &str, version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match module {
        "k8s.io/kubernetes" => ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
            .map(|package| format!("-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} -X {package}.gitTreeState=archive"))
            .iter()
            .fold("-s -w".into(), |all, one| format!("{all} {one}")),
        _ => format!("-s -w -X github.com/coredns/coredns/coremain.GitCommit={version}"),
    }
}

/// The Go module in this crate.
struct Module {
    dir: PathBuf,
    requirements: String,
    hash: String,
}

impl Module {
    fn read() -> Result<Module> {
        let dir = paths::project().join("xtask/kubeall");
        let mut sum = Sha256::new();
        for file in ["go.mod", "go.sum", "main.go", "kubectl/main.go", "coredns/main.go"] {
            sum.update(fs::read(dir.join(file)).with_context(|| format!("xtask/kubeall/{file} is missing"))?);
        }
        let requirements = fs::read_to_string(dir.join("go.mod"))?;
        Ok(Module { dir, requirements, hash: sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// The version of a module that it requires.
    fn version(&self, module: &str) -> Result<String> {
        let found = self.requirements.lines().find_map(|line| {
            line.trim().strip_prefix(module)?.trim().split(' ').next().filter(|v| v.starts_with('v')).map(str::to_owned)
        });
        found.with_context(|| format!("xtask/kubeall/go.mod does not require {module}"))
    }

    /// The Go language version that it asks for.
    fn go(&self) -> Result<(u32, u32)> {
        self.requirements
            .lines()
            .find_map(|line| version(line.strip_prefix("go ")?))
            .context("xtask/kubeall/go.mod asks for no Go version")
    }
}

/// A Go that can build the module: the machine's, or Debian's.
struct Go {
    program: PathBuf,
    /// It is older than the module asks for and fetches the right one itself.
    fetches: bool,
}

impl Go {
    fn find(module: &Module) -> Result<Go> {
        let wanted = module.go()?;
        let debian = paths::lab().join("go");
        let unpacked = || {
            fs::read_dir(debian.join("usr/lib")).ok()?.flatten().map(|e| e.path().join("bin/go")).find(|go| go.exists())
        };
        for program in [Some(PathBuf::from("go")), unpacked()].into_iter().flatten() {
            // Outside of the module: inside, an old Go would already be fetching a new one to answer.
            let said = output(Command::new(&program).arg("version").env("GOTOOLCHAIN", "local").current_dir("/"));
            let have =
                said.ok().and_then(|said| said.split_whitespace().find_map(|word| version(word.strip_prefix("go")?)));
            match have {
                Some(have) if have >= wanted => return Ok(Go { program, fetches: false }),
                Some(have) if have >= GO_FETCHES_TOOLCHAINS => return Ok(Go { program, fetches: true }),
                _ => {}
            }
        }
        let suite = format!("{}-backports", debian::release()?);
        println!("Go: unpacking Debian's golang from {suite}");
        debian::go(&suite, &debian)?;
        Ok(Go { program: unpacked().context("Debian's package has no go program")?, fetches: true })
    }

    fn command(&self, module: &Module) -> Command {
        let mut command = Command::new("nice");
        command
            .arg(&self.program)
            .current_dir(&module.dir)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .env("GOWORK", "off");
        if self.fetches {
            command.env("GOTOOLCHAIN", "auto");
        }
        command
    }
}

/// `1.26.0` or `1.26` as numbers.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Module, version};

    #[test]
    fn the_module_says_its_versions() {
        let module = Module::read().expect("the module is in the project");
        assert!(module.go().expect("it asks for a Go") >= (1, 26));
        assert!(module.version("k8s.io/kubernetes").expect("it requires Kubernetes").starts_with("v1."));
        assert_eq!(version("1.26.8"), Some((1, 26)));
    }
}
