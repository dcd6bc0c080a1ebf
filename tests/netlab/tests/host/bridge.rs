//! A bridge and containers behind it, as Docker makes them, and what these ask of the cluster.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use tpx_datapath::linux::{Feature, probe};

use crate::{
    app,
    neighbour::{Neighbour, ip},
};

/// A bridge of the host's; gone when it is dropped.
pub(crate) struct Bridge(&'static str);

impl Bridge {
    pub(crate) fn create(name: &'static str, addresses: [&str; 2]) -> Result<Self> {
        ip(&format!("link add {name} type bridge"))?;
        let bridge = Self(name);
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("address add {address} dev {name} {nodad}"))?;
        }
        ip(&format!("link set {name} up"))?;
        Ok(bridge)
    }

    pub(crate) fn docker() -> Result<Self> {
        Self::create("docker0", ["172.17.0.1/16", "fd17::1/64"])
    }

    /// A container behind it, whose default routes lead to the bridge.
    pub(crate) fn container(
        &self,
        device: &str,
        addresses: [&str; 2],
        routers: [&'static str; 2],
    ) -> Result<Neighbour> {
        let container = Neighbour::plug(device, &[], &addresses)?;
        ip(&format!("link set {device}0 master {}", self.0))?;
        container.run(move || {
            ip(&format!("route add default via {}", routers[0]))?;
            ip(&format!("-6 route add default via {}", routers[1]))
        })?;
        Ok(container)
    }

    pub(crate) fn first(&self) -> Result<Neighbour> {
        self.container("ctr", ["172.17.0.2/16", "fd17::2/64"], ["172.17.0.1", "fd17::1"])
    }

    pub(crate) fn second(&self) -> Result<Neighbour> {
        self.container("ctb", ["172.17.0.3/16", "fd17::3/64"], ["172.17.0.1", "fd17::1"])
    }

    pub(crate) fn is_bare(&self) -> Result<bool> {
        let tc = |words: &str| -> Result<String> {
            let out = Command::new("tc").args(words.split_whitespace()).output().context("iproute2 is missing")?;
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        };
        let (filters, disciplines) =
            (tc(&format!("filter show dev {} ingress", self.0))?, tc(&format!("qdisc show dev {}", self.0))?);
        let bare = filters.is_empty() && !disciplines.contains("clsact");
        if probe(&[]).missing.contains(&Feature::Tcx) {
            return Ok(bare);
        }
        let (_, links) = aya::programs::SchedClassifier::query_tcx(self.0, aya::programs::TcAttachType::Ingress)?;
        Ok(bare && links.is_empty())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.0));
    }
}

/// A switch of ip-sysctl.rst in this namespace, as it was when dropped.
pub(crate) struct Switch(&'static str, String);

impl Switch {
    pub(crate) fn set(path: &'static str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value)?;
        Ok(Self(path, before))
    }

    pub(crate) fn router() -> Result<[Self; 2]> {
        Ok([
            Self::set("/proc/sys/net/ipv4/ip_forward", "1")?,
            Self::set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?,
        ])
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = fs::write(self.0, &self.1);
    }
}

/// All bytes there and back, while both directions are in use.
pub(crate) fn echo(to: SocketAddr, bytes: Vec<u8>) -> Result<()> {
    let mut stream = app::connect(to)?;
    let (mut writer, sent) = (stream.try_clone()?, bytes.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    writing.join().map_err(|_| anyhow::anyhow!("the writer died"))??;
    ensure!(back == bytes, "{} bytes came back, of {}", back.len(), bytes.len());
    Ok(())
}

/// A datagram there, and what the relay answers.
pub(crate) fn datagram(to: SocketAddr, size: usize) -> Result<()> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(app::PATIENCE))?;
    socket.connect(to)?;
    let payload: Vec<u8> = (0..size).map(|i| (i ^ i >> 8) as u8).collect();
    socket.send(&payload)?;
    let mut answer = vec![0; 65536];
    let n = socket.recv(&mut answer)?;
    ensure!(answer[..n] == [format!("{to} ").as_bytes(), &payload].concat(), "{n} other bytes");
    Ok(())
}

pub(crate) fn ping(to: IpAddr) -> Result<()> {
    let out =
        Command::new("ping").args(["-c", "2", "-i", "0.05", "-W", "3", "-s", "3000", &to.to_string()]).output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success() && text.contains("2 received"), "{text}");
    Ok(())
}

/// Asks a name server; who answered, as the relay and [`name_server`] say it.
pub(crate) fn ask(server: &str) -> Result<String> {
    let to = SocketAddr::new(server.parse()?, 53);
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(app::PATIENCE))?;
    socket.send_to(b"name?", to)?;
    let mut answer = [0; 100];
    let (n, from) = socket.recv_from(&mut answer).with_context(|| server.to_owned())?;
    ensure!(from == to, "{from} answers for {to}");
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}
