//! Debian packages: some installed, some only unpacked into the cache, some from a suite that the machine does not use.
//!
//! Every download goes to the mirror that apt on this machine is configured with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::versions::{INSTALLED, UNPACKED};
use crate::paths;
use crate::run::{output, step, visibly};

/// Installs what is missing of the packages that belong on the machine.
pub(crate) fn installed() -> Result<()> {
    let missing: Vec<&str> =
        INSTALLED.iter().map(|(package, _)| *package).filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        println!("Debian packages: ok");
        return Ok(());
    }
    let what = INSTALLED
        .iter()
        .filter(|(package, _)| missing.contains(package))
        .map(|(package, why)| format!("{package} ({why})"))
        .collect::<Vec<_>>()
        .join(", ");
    println!("Debian packages: installing {what}");
    step("Debian packages", || {
        let apt = |arguments: &[&str]| {
            let mut command = as_root("apt-get");
            visibly(
                command
                    .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
                    .args(arguments)
                    .env("DEBIAN_FRONTEND", "noninteractive")
                    .stdout(std::io::stderr()),
            )
        };
        apt(&["update"])?;
        apt(&[&["install", "-y", "--no-install-recommends"], &missing[..]].concat())
    })
    .with_context(|| format!("install them by hand and run this again: {}", missing.join(" ")))
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status.trim() == "installed")
}

/// A command that runs as root, through sudo where this is not root.
fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["DEBIAN_FRONTEND=noninteractive", program]);
    command
}

/// Unpacks what the lab runs and the machine must not into the cache.
pub(crate) fn unpacked() -> Result<()> {
    let root = paths::packages();
    let stamp = root.join(".packages");
    let wanted = format!("{} on {}\n", UNPACKED.join(" "), release()?);
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        println!("container runtimes and systemd-resolved: ok");
        return Ok(());
    }
    println!("container runtimes and systemd-resolved: unpacking {}", UNPACKED.join(", "));
    step("unpacked packages", || {
        let packages = paths::lab().join("packages");
        fs::create_dir_all(&packages)?;
        let download = || {
            output(
                Command::new("apt-get")
                    .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
                    .args(UNPACKED)
                    .current_dir(&packages),
            )
        };
        // A machine that never ran `apt-get update` knows no packages.
        if download().is_err() {
            visibly(as_root("apt-get").args(["-qq", "update"]))?;
            download().with_context(|| format!("cannot download {}", UNPACKED.join(", ")))?;
        }
        unpack(&packages, &root)?;
        Ok(fs::write(&stamp, wanted)?)
    })
}

/// Unpacks every package of a folder, and removes the folder.
fn unpack(packages: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for package in fs::read_dir(packages)? {
        let package = package?.path();
        if package.extension().is_some_and(|e| e == "deb") {
            output(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(root))?;
        }
    }
    Ok(fs::remove_dir_all(packages)?)
}

/// Downloads packages (`name` or `name=version`) of another suite of Debian, without a change to what apt on this machine uses, and
/// unpacks them into `root`. Checks the first one against `sha256` where that is given.
pub(crate) fn from_suite(suite: &str, packages: &[&str], root: &Path, sha256: Option<&str>) -> Result<()> {
    let suite = Suite::update(suite, root)?;
    suite.download(packages)?;
    if let Some(sha256) = sha256 {
        let file = first_package(&suite.packages())?;
        let sum = output(Command::new("sha256sum").arg(&file))?;
        ensure!(
            sum.starts_with(sha256),
            "{} is not the package that this was tested with (SHA-256 {sum})",
            file.display()
        );
    }
    suite.unpack(root)
}

/// The same for what a package without content stands for: its dependency whose name begins with `prefix`.
pub(crate) fn meant_by(suite: &str, package: &str, prefix: &str, root: &Path) -> Result<()> {
    let suite = Suite::update(suite, root)?;
    let about = output(suite.apt("apt-cache").args(["depends", "--important", package]))?;
    let meant = about.lines().find_map(|line| line.trim().strip_prefix("Depends: ").filter(|p| p.starts_with(prefix)));
    suite.download(&[meant.with_context(|| format!("{} has no {package}", suite.name))?])?;
    suite.unpack(root)
}

/// A suite that apt on this machine does not use, with a configuration of its own.
struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    /// Reads what the suite has; works in a folder beside `root`.
    fn update(suite: &str, root: &Path) -> Result<Suite> {
        let dir = root.with_extension("apt");
        for part in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        ensure!(Path::new(keys).exists(), "{keys} is missing: install debian-archive-keyring");
        fs::write(dir.join("sources.list"), format!("deb [signed-by={keys}] {} {suite} main\n", mirror()?))?;
        let at = dir.display();
        fs::write(
            dir.join("apt.conf"),
            format!(
                r#"Dir::Etc::sourcelist "{at}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{at}/lists";
Dir::Cache "{at}/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
"#
            ),
        )?;
        let suite = Suite { name: suite.to_owned(), dir };
        output(suite.apt("apt-get").args(["-qq", "update"]))?;
        Ok(suite)
    }

    fn download(&self, packages: &[&str]) -> Result<()> {
        output(self.apt("apt-get").args(["-qq", "download"]).args(packages))
            .with_context(|| format!("{} does not have {}", self.name, packages.join(", ")))
            .map(drop)
    }

    /// Unpacks what was downloaded, and forgets the suite.
    fn unpack(self, root: &Path) -> Result<()> {
        unpack(&self.packages(), root)?;
        Ok(fs::remove_dir_all(&self.dir)?)
    }

    fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.env("APT_CONFIG", self.dir.join("apt.conf")).current_dir(self.packages());
        apt
    }
}

fn first_package(dir: &Path) -> Result<PathBuf> {
    fs::read_dir(dir)?.filter_map(|e| Some(e.ok()?.path())).next().context("nothing was downloaded")
}

/// The Debian archive that apt uses here.
fn mirror() -> Result<String> {
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]))
            .context("apt is missing: this needs Debian 12 or newer")?;
    match targets.lines().find(|uri| uri.ends_with("/debian/")) {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("apt is configured with no Debian archive"),
    }
}

/// Debian's code name here.
pub(crate) fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("/etc/os-release is missing")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("/etc/os-release has no VERSION_CODENAME: this needs Debian 12 or newer")?
        .trim_matches('"')
        .to_owned())
}

/// Unpacks the Go that the suite's `golang-go` stands for.
pub(crate) fn go(suite: &str, root: &Path) -> Result<()> {
    // The package itself is empty and depends on one with the version in its name, `golang-1.NN-go`; that one needs `golang-1.NN-src`.
    let dir = root.with_extension("probe");
    from_suite(suite, &["golang-go"], &dir, None)?;
    let link = fs::read_link(dir.join("usr/bin/go")).context("golang-go has no link to the program")?;
    let version = link.to_string_lossy().split('/').find_map(|part| part.strip_prefix("go-").map(str::to_owned));
    let version = version.context("golang-go does not say which Go it means")?;
    fs::remove_dir_all(&dir)?;
    from_suite(suite, &[&format!("golang-{version}-go"), &format!("golang-{version}-src")], root, None)?;
    // Debian keeps the standard library apart and links to it with absolute paths.
    let (home, share) = (root.join(format!("usr/lib/go-{version}")), root.join(format!("usr/share/go-{version}")));
    for part in fs::read_dir(&share)? {
        let part = part?;
        let link = home.join(part.file_name());
        if link.is_symlink() || !link.exists() {
            fs::remove_file(&link).ok();
            std::os::unix::fs::symlink(part.path(), &link)?;
        }
    }
    Ok(())
}
