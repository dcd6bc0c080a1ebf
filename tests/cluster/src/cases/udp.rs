//! Datagrams and pings.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::Case;
use crate::{
    cluster, laptop,
    laptop::at,
    process::{run, sh},
};

pub(super) const CASES: &[Case] = &[
    ("udp::400_destinations_from_3_sockets", many),
    ("udp::connected_and_not_in_every_family", families),
    ("udp::60000_bytes", large),
    ("udp::a_closed_port_refuses", refused),
    ("udp::behind_virtual_addresses", virtually),
    ("udp::quic_downloads_100_mib", quic),
    ("udp::the_clusters_own_name_server", name_server),
    ("icmp::ping_a_pod", ping),
    ("icmp::ping_nobody", nobody),
];

const ECHO: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(5);
/// Ports of the echo workload that answer with their own number.
const FIRST: u16 = 20_000;
const PORTS: u16 = 400;

fn socket(local: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a payload and expects it back from the same address.
fn echoes(socket: &UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    // The first one may be lost, as on any network.
    for _ in 0..2 {
        socket.send_to(payload, to).with_context(|| format!("send to {to}"))?;
        match socket.recv_from(&mut buffer) {
            Ok((count, from)) => {
                ensure!(from == to, "asked {to}, but {from} answered");
                ensure!(&buffer[..count] == payload, "{count} other bytes than the {} sent", payload.len());
                return Ok(());
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e).with_context(|| format!("answer of {to}")),
        }
    }
    bail!("{to} did not answer")
}

/// 20,000 datagrams; each answer names the port that it was sent to and carries the number of its question.
fn many() -> Result<()> {
    const DATAGRAMS: u32 = 20_000;
    const AHEAD: usize = 48;
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?.v4;
    let sockets = [socket("0.0.0.0:0")?, socket("0.0.0.0:0")?, socket("0.0.0.0:0")?];
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    }
    let (mut asked, mut answered, mut wrong) = (HashMap::new(), 0, 0);
    let mut buffer = [0; 2048];
    let mut receive = |socket: &UdpSocket, which: usize, asked: &mut HashMap<(usize, u32), u16>| -> Result<bool> {
        let (count, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let text = std::str::from_utf8(&buffer[..count])?;
        let (port, number) = text.split_once(' ').context("no number")?;
        let (port, number): (u16, u32) = (port.parse()?, number.parse()?);
        match asked.remove(&(which, number)) {
            Some(expected) if expected == port && from == at(pod, port) => answered += 1,
            _ => wrong += 1,
        }
        Ok(true)
    };
    for number in 0..DATAGRAMS {
        let which = number as usize % sockets.len();
        let port = FIRST + u16::try_from(number % u32::from(PORTS))?;
        asked.insert((which, number), port);
        sockets[which].send_to(number.to_string().as_bytes(), at(pod, port))?;
        if number as usize % AHEAD == AHEAD - 1 {
            for (which, socket) in sockets.iter().enumerate() {
                for _ in 0..AHEAD / sockets.len() {
                    receive(socket, which, &mut asked)?;
                }
            }
        }
    }
    for (which, socket) in sockets.iter().enumerate() {
        while receive(socket, which, &mut asked)? {}
    }
    ensure!(wrong == 0, "{wrong} answers were attributed to another destination");
    ensure!(answered > DATAGRAMS * 99 / 100, "{answered} of {DATAGRAMS} datagrams were answered");
    Ok(())
}

fn families() -> Result<()> {
    laptop::connect()?;
    let (service, pod) = (cluster::service("default", "echo")?, cluster::pod("default", "app=echo")?);
    for ip in [service.v4, service.v6, pod.v4, pod.v6] {
        let local = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        echoes(&socket(local)?, at(ip, ECHO), b"unconnected")?;
        let connected = socket(local)?;
        connected.connect(at(ip, ECHO))?;
        ensure!(connected.peer_addr()? == at(ip, ECHO), "the peer is {}", connected.peer_addr()?);
        let mut answer = [0; 100];
        for _ in 0..2 {
            connected.send(b"connected")?;
            if let Ok(count) = connected.recv(&mut answer) {
                ensure!(&answer[..count] == b"connected");
                break;
            }
        }
        ensure!(&answer[..9] == b"connected", "{ip} did not answer a connected socket");
    }
    let mapped: IpAddr = format!("::ffff:{}", service.v4).parse()?;
    echoes(&socket("[::]:0")?, at(mapped, ECHO), b"mapped")
}

fn large() -> Result<()> {
    laptop::connect()?;
    let (service, payload) = (cluster::service("default", "echo")?, vec![0x5a; 60_000]);
    echoes(&socket("0.0.0.0:0")?, at(service.v4, ECHO), &payload)?;
    echoes(&socket("[::]:0")?, at(service.v6, ECHO), &payload)
}

fn refused() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for ip in [pod.v4, pod.v6] {
        let socket = socket(if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(at(ip, 1009))?;
        socket.send(b"anybody?")?;
        let error = socket.recv(&mut [0; 10]).err().and_then(|e| e.raw_os_error());
        ensure!(error == Some(Errno::CONNREFUSED.raw_os_error()), "{ip}: {error:?}");
    }
    Ok(())
}

fn virtually() -> Result<()> {
    laptop::connect_with(&["--vnat", "all"])?;
    for (database, local) in [("ahostsv4", "0.0.0.0:0"), ("ahostsv6", "[::]:0")] {
        let said = sh(&format!("getent {database} echo.default"))?.success()?;
        let ip: IpAddr = said.split_whitespace().next().context("no address")?.parse()?;
        let real = cluster::service("default", "echo")?;
        ensure!(ip != real.v4 && ip != real.v6, "{ip} is no virtual address");
        echoes(&socket(local)?, at(ip, ECHO), b"virtual")?;
        let connected = socket(local)?;
        connected.connect(at(ip, ECHO))?;
        ensure!(connected.peer_addr()? == at(ip, ECHO), "the peer is {}", connected.peer_addr()?);
    }
    laptop::quit()
}

fn quic() -> Result<()> {
    const BYTES: usize = 100 << 20;
    laptop::connect()?;
    let service = cluster::service("default", "echo")?;
    let block: Vec<u8> = (0..65_536).map(|i: usize| (i * 7 + i / 256) as u8).collect();
    let mut sum = Sha256::new();
    for _ in 0..BYTES / block.len() {
        sum.update(&block);
    }
    let expected: String = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
    for ip in [service.v4, service.v6] {
        let said = run(Command::new("tpx-quic-get").arg(at(ip, 4433).to_string()).arg(BYTES.to_string()))?.success()?;
        let report: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(report["bytes"] == BYTES && report["sha256"] == expected, "{report}");
    }
    Ok(())
}

fn name_server() -> Result<()> {
    laptop::connect()?;
    let (dns, web) = (cluster::service("kube-system", "kube-dns")?, cluster::service("emojivoto", "web-app")?);
    for (server, transport) in [(dns.v4, "+notcp"), (dns.v6, "+notcp"), (dns.v4, "+tcp")] {
        let said = sh(&format!("dig {transport} +short +time=5 @{server} web-app.emojivoto.svc.cluster.local A"))?;
        ensure!(said.success()?.trim() == web.v4.to_string(), "{server} {transport}");
    }
    Ok(())
}

fn ping() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("emojivoto", "app=web")?;
    for (program, ip) in [("ping -4", pod.v4), ("ping -6", pod.v6)] {
        let said = sh(&format!("{program} -c 3 -i 0.2 -W 5 {ip}"))?.success()?;
        ensure!(said.contains("3 received") && said.contains(" 0% packet loss"), "{said}");
        // Its own time, not that of an answer made on the way: a pod's answer takes the road through the tunnel.
        let average = said.rsplit("= ").next().and_then(|times| times.split('/').nth(1)).context("no times")?;
        let milliseconds: f64 = average.parse()?;
        ensure!(milliseconds > 0.1 && milliseconds < 1000.0, "{said}");
    }
    // A payload comes back as it was, also one that needs fragments.
    sh(&format!("ping -c 1 -W 5 -s 4000 -p 5a {}", pod.v4))?.success()?;
    Ok(())
}

/// No such pod: the node's own neighbour discovery fails, and that is what the laptop hears.
fn nobody() -> Result<()> {
    laptop::connect()?;
    for (program, ip) in [("ping -4", "10.244.0.250"), ("ping -6", "fd10:244::fffe")] {
        let began = Instant::now();
        let said = sh(&format!("{program} -c 1 -W 10 {ip}"))?;
        ensure!(!said.status.success(), "{ip} answered: {said:?}");
        let heard = said.stdout.contains("nreachable");
        ensure!(heard && began.elapsed() < Duration::from_secs(10), "{said:?}");
    }
    Ok(())
}
