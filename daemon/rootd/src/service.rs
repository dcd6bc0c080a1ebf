//! The systemd service: one unit text for packages and for `tpx-rootd install`, put where it belongs and taken away again.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

const UNIT: &str = "tpx-rootd.service";
/// Where an administrator's units are (systemd.unit(5)).
const PATH: &str = "/etc/systemd/system/tpx-rootd.service";
/// As it ships: the owner is in a file that a package's administrator writes.
const SHIPPED: &str = include_str!("../systemd/tpx-rootd.service");
const SHIPPED_OWNER: &str =
    "# TPX_OWNER=<user or uid>: the only user who may use it.\nEnvironmentFile=/etc/tpx/rootd.env\n";
const SHIPPED_PROGRAM: &str = "ExecStart=/usr/bin/tpx-rootd ";

/// The unit that serves `owner` with `program`.
///
/// # Errors
/// When the path cannot be written in a unit without quoting.
fn unit(program: &str, owner: u32) -> anyhow::Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    ensure!(
        program.starts_with('/') && program.chars().all(plain),
        "{program:?} cannot stand in a unit: install tpx-rootd under a plain path such as /usr/local/bin"
    );
    let owner = format!("# The only user who may use it.\nEnvironment=TPX_OWNER={owner}\n");
    Ok(SHIPPED.replace(SHIPPED_OWNER, &owner).replace(SHIPPED_PROGRAM, &format!("ExecStart={program} ")))
}

/// Installs, enables and (re)starts the service for `owner`.
///
/// # Errors
/// Where systemd does not run, without root, or when this program lies where its owner could exchange it.
pub(crate) fn install(owner: u32) -> anyhow::Result<()> {
    systemd_runs(Path::new("/run/systemd/system"))?;
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    only_root_changes(&program)?;
    let text = unit(program.to_str().context("the path of this program is no text")?, owner)?;
    write(Path::new(PATH), &text).with_context(|| format!("cannot write {PATH} (run it as root)"))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", UNIT])?;
    systemctl(&["restart", UNIT])?;
    println!("{UNIT} serves user {owner}");
    Ok(())
}

/// Stops, disables and removes the service.
///
/// # Errors
/// Where systemd does not run, or without root.
pub(crate) fn uninstall() -> anyhow::Result<()> {
    systemd_runs(Path::new("/run/systemd/system"))?;
    if !Path::new(PATH).exists() {
        println!("{PATH} is not there: nothing to do");
        return Ok(());
    }
    systemctl(&["disable", "--now", UNIT])?;
    fs::remove_file(PATH).with_context(|| format!("cannot remove {PATH} (run it as root)"))?;
    systemctl(&["daemon-reload"])?;
    println!("{UNIT} is gone");
    Ok(())
}

/// As sd_booted(3) finds out.
fn systemd_runs(mark: &Path) -> anyhow::Result<()> {
    ensure!(
        mark.is_dir(),
        "systemd does not run here: start `tpx-rootd serve --owner USER` as root by other means, or let `tpx connect` \
         start it through sudo"
    );
    Ok(())
}

/// What root will run must not be for others to exchange, in any directory above it either.
fn only_root_changes(program: &Path) -> anyhow::Result<()> {
    for path in program.ancestors() {
        let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
            bail!(
                "{} is not root's alone to change: put the program where it is (`sudo install {} /usr/local/bin/`) and \
                 run that one",
                path.display(),
                program.display()
            );
        }
    }
    Ok(())
}

/// The whole text or none of it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

fn systemctl(words: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("systemctl").args(words).status().context("cannot run systemctl")?;
    ensure!(status.success(), "`systemctl {}` failed: see `journalctl -u {UNIT}`", words.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_names_program_and_owner() {
        let text = unit("/usr/local/bin/tpx-rootd", 1000).unwrap();
        assert!(text.contains("\nExecStart=/usr/local/bin/tpx-rootd serve\n"), "{text}");
        assert!(text.contains("\nEnvironment=TPX_OWNER=1000\n"), "{text}");
        assert!(!text.contains("EnvironmentFile") && !text.contains("/usr/bin/tpx-rootd"), "{text}");
        // All else as it ships.
        assert_eq!(text.lines().count(), SHIPPED.lines().count());
        for hardening in
            ["NoNewPrivileges=yes", "ProtectSystem=strict", "RestrictAddressFamilies=", "SystemCallFilter="]
        {
            assert!(text.contains(hardening), "{hardening}");
        }
    }

    #[test]
    fn odd_paths_are_refused() {
        for path in ["tpx-rootd", "/opt/a b/tpx-rootd", "/x%h/tpx-rootd", "/x\nExecStartPre=/bin/sh", "/x$y", "/x;y"] {
            assert!(unit(path, 1).is_err(), "{path}");
        }
    }

    #[test]
    fn where_systemd_does_not_run() {
        let e = systemd_runs(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(e.contains("sudo"), "{e}");
    }

    #[test]
    fn a_program_that_others_can_exchange_is_not_installed() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tpx-rootd");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(only_root_changes(&program).unwrap_err().to_string().contains("root's alone"));
        // Whatever its own mode: /tmp is everybody's.
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(only_root_changes(&program).is_err());
    }

    #[test]
    fn systemd_understands_the_unit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(UNIT);
        // A program that is there: `verify` looks for it.
        fs::write(&path, unit("/bin/true", 1000).unwrap()).unwrap();
        let analyze = |words: &[&str]| Command::new("systemd-analyze").args(words).arg(&path).output();
        let verified = analyze(&["verify", "--man=no"]).expect("systemd-analyze, which `cargo xtask setup` installs");
        let said = String::from_utf8_lossy(&verified.stderr);
        let ours: Vec<_> = said.lines().filter(|line| line.contains("tpx-rootd")).collect();
        assert!(ours.is_empty(), "{ours:?}");
        // Exposure times ten, of a hundred.
        let secure = analyze(&["security", "--offline=true", "--threshold=35", "--no-pager"]).unwrap();
        let table = String::from_utf8_lossy(&secure.stdout);
        assert!(secure.status.success(), "{table}{}", String::from_utf8_lossy(&secure.stderr));
    }
}
