//! The real systemd-resolved with a private D-Bus, as on most desktops: nsswitch asks it, and resolv.conf names its stub.

use std::{
    fs,
    os::unix::fs::chown,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::process::{eventually, sh};

const PACKAGES: &str = "/run/lab/packages";
const UID: u32 = 990;
const BUS: &str = "/run/dbus/system_bus_socket";
/// Whoever can open the socket may do everything: the laptop has no polkit.
const BUS_CONFIG: &str = "<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>\
<auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
<allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>";
/// What is changed, and put back.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/nsswitch.conf"];

/// A running systemd-resolved. Goes when dropped.
pub(crate) struct Resolved {
    processes: Vec<Child>,
    before: Vec<String>,
}

impl Resolved {
    /// Starts it beside the laptop's name server and lets every program use it.
    pub(crate) fn start() -> Result<Self> {
        let before = FILES.iter().map(|file| Ok(fs::read_to_string(file)?)).collect::<Result<_>>()?;
        let mut resolved = Self { processes: Vec::new(), before };
        for dir in ["/run/dbus", "/run/systemd/resolve", "/etc/systemd"] {
            fs::create_dir_all(dir)?;
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        if !passwd.contains("systemd-resolve:") {
            fs::write("/etc/passwd", format!("{passwd}systemd-resolve:x:{UID}:{UID}::/:/usr/sbin/nologin\n"))?;
            let group = fs::read_to_string("/etc/group")?;
            fs::write("/etc/group", format!("{group}systemd-resolve:x:{UID}:\n"))?;
        }
        chown("/run/systemd/resolve", Some(UID), Some(UID))?;
        fs::write("/etc/systemd/resolved.conf", "[Resolve]\nDNS=198.51.100.53\nLLMNR=no\nMulticastDNS=no\n")?;
        fs::write("/tmp/bus.conf", BUS_CONFIG)?;
        let program = ["lib/systemd/systemd-resolved", "usr/lib/systemd/systemd-resolved"]
            .map(|path| Path::new(PACKAGES).join(path))
            .into_iter()
            .find(|path| path.exists())
            .context("systemd-resolved is not unpacked")?;
        resolved.spawn(Command::new("dbus-daemon").args(["--config-file=/tmp/bus.conf", "--nofork", "--nopidfile"]))?;
        eventually(Duration::from_secs(5), || {
            ensure!(Path::new(BUS).exists(), "no bus");
            Ok(())
        })?;
        resolved.spawn(&mut Command::new(program))?;
        eventually(Duration::from_secs(5), || {
            ensure!(Path::new("/run/systemd/resolve/stub-resolv.conf").exists(), "it does not start");
            Ok(())
        })?;
        fs::copy("/run/systemd/resolve/stub-resolv.conf", FILES[0])?;
        let switch = &resolved.before[1];
        let hosts = "hosts: resolve [!UNAVAIL=return] files dns";
        let lines: Vec<&str> =
            switch.lines().map(|line| if line.starts_with("hosts:") { hosts } else { line }).collect();
        fs::write(FILES[1], lines.join("\n") + "\n")?;
        eventually(Duration::from_secs(5), || resolvectl("query www.example.test"))?;
        Ok(resolved)
    }

    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        command.env("LD_LIBRARY_PATH", libraries()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.processes.push(command.spawn().with_context(|| format!("start {command:?}"))?);
        Ok(())
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for (file, text) in FILES.iter().zip(&self.before) {
            let _ = fs::write(file, text);
        }
        let _ = fs::remove_file(BUS);
        let _ = fs::remove_dir_all("/run/systemd/resolve");
    }
}

/// Where its libraries are, and the nsswitch module.
pub(crate) fn libraries() -> String {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    format!("{PACKAGES}/usr/lib/{triplet}:{PACKAGES}/usr/lib/{triplet}/systemd:{PACKAGES}/lib/{triplet}")
}

/// Runs `resolvectl`.
pub(crate) fn resolvectl(arguments: &str) -> Result<String> {
    sh(&format!("LD_LIBRARY_PATH={} {PACKAGES}/usr/bin/resolvectl {arguments}", libraries()))?.success()
}

/// `getent` by nsswitch, whose `resolve` module asks systemd-resolved by its own socket and never sends to port 53.
pub(crate) fn getent(name: &str) -> Result<String> {
    sh(&format!("LD_LIBRARY_PATH={} getent ahosts {name}", libraries()))?.success()
}
