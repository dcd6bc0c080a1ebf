//! The laptop: a machine of its own as far as its programs can tell, on the host's file system.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::mount_bind;

use super::config::{Lab, NAME_SERVER, RUN_LAB, USERS};
use super::{mounts, supervise};
use crate::paths;
use crate::run::feed;

/// The name that the laptop has for itself.
const HOST: &str = "laptop";

/// Runs as the laptop's first process.
pub(crate) fn init(lab: &Lab) -> Result<()> {
    rustix::system::sethostname(HOST.as_bytes())?;
    // What is shown under /run/lab may lie in a folder that is about to be covered, so it is bound first.
    let kubeconfigs = ["laptop", "laptop-expired"].map(|name| fs::read(lab.pki().join(format!("{name}.kubeconfig"))));
    mounts::private()?;
    mounts::fresh("cgroup2", "/sys/fs/cgroup", "")?;
    mounts::run_lab()?;
    bind(&paths::cluster_bin().join("kubectl"), &format!("{RUN_LAB}/bin/kubectl"))?;
    bind(&paths::packages().join("usr/bin/docker"), &format!("{RUN_LAB}/bin/docker"))?;
    let packages = format!("{RUN_LAB}/packages");
    fs::create_dir_all(&packages)?;
    mount_bind(paths::packages(), &packages).context("cannot show the unpacked packages")?;
    mounts::empty("/tmp", "1777")?;
    mounts::empty("/home", "755")?;
    mounts::empty("/var/log", "755")?;
    mounts::empty("/dev/shm", "1777")?;
    mounts::writable_copy("/etc", &Path::new(RUN_LAB).join("etc"))?;
    etc()?;
    for (name, data) in ["kubeconfig", "kubeconfig-expired"].iter().zip(kubeconfigs) {
        // Everybody on the laptop may read it: another user with the same cluster is a case of its own.
        write(&format!("{RUN_LAB}/{name}"), &String::from_utf8(data.context("no kubeconfig")?)?, 0o644)?;
    }
    fs::create_dir_all(format!("{RUN_LAB}/root"))?;
    for (user, id) in USERS {
        for dir in [format!("/home/{user}"), format!("/run/user/{id}")] {
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
            chown(&dir, Some(id), Some(id))?;
        }
    }
    feed(Command::new("ip").args(["link", "set", "lo", "up"]), "")?;
    supervise::mark("network")?;
    supervise::run(lab, Vec::new())
}

/// The files that make it a machine with its own users and its own name server.
fn etc() -> Result<()> {
    let mut passwd =
        String::from("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    let mut group = String::from("root:x:0:\ntty:x:5:\nsudo:x:27:\nnogroup:x:65534:\n");
    let mut shadow = String::from("root:*:19000:0:99999:7:::\n");
    for (user, id) in USERS {
        passwd += &format!("{user}:x:{id}:{id}:{user}:/home/{user}:/bin/bash\n");
        group += &format!("{user}:x:{id}:\n");
        shadow += &format!("{user}:*:19000:0:99999:7:::\n");
    }
    write("/etc/passwd", &passwd, 0o644)?;
    write("/etc/group", &group, 0o644)?;
    write("/etc/shadow", &shadow, 0o600)?;
    write("/etc/hostname", &format!("{HOST}\n"), 0o644)?;
    write("/etc/hosts", &format!("127.0.0.1 localhost\n127.0.1.1 {HOST}\n::1 localhost ip6-localhost\n"), 0o644)?;
    write("/etc/resolv.conf", &format!("nameserver {NAME_SERVER}\n"), 0o644)?;
    write(
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
        0o644,
    )?;
    let search = format!("{RUN_LAB}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    write(
        "/etc/sudoers",
        &format!("Defaults secure_path=\"{search}\"\nroot ALL=(ALL:ALL) ALL\ndev ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        0o440,
    )
}

/// Replaces the file: it may be a link to somewhere outside.
fn write(path: &str, text: &str, mode: u32) -> Result<()> {
    fs::remove_file(path).ok();
    fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

fn bind(source: &Path, target: &str) -> Result<()> {
    if let Some(parent) = Path::new(target).parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(target, "")?;
    mount_bind(source, target).with_context(|| format!("cannot show {} as {target}", source.display()))
}
