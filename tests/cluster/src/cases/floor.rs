//! What no hook of the kernel sees goes through the device, on either datapath.

use std::{fs, net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::{cluster, laptop, laptop::at, process::sh, residue};

pub(super) const CASES: &[Case] = &[
    ("floor::a_socket_from_before_connect", before),
    ("floor::another_network_namespace", namespace),
    ("floor::a_path_of_1280_bytes", narrow),
];

/// It was connected when nobody hooked it, and has an address of the laptop's own network as its source.
fn before() -> Result<()> {
    laptop::quit()?;
    let pod = cluster::pod("default", "app=echo")?;
    let sockets = [("0.0.0.0:0", pod.v4), ("[::]:0", pod.v6)].map(|(local, ip)| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(local)?;
        socket.connect(at(ip, 7))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    });
    laptop::connect_with(&[])?;
    for socket in sockets {
        let (socket, mut answer) = (socket?, [0; 16]);
        // The first may be lost, as on any network; and before there was a route, the kernel may have noted an error.
        let answered = (0..3).any(|_| {
            let _ = socket.send(b"early");
            socket.recv(&mut answer).is_ok_and(|count| &answer[..count] == b"early")
        });
        ensure!(answered, "{:?} got no answer", socket.local_addr());
    }
    Ok(())
}

/// A namespace that is routed through the laptop, as containers are: its sockets are of no cgroup of ours.
fn namespace() -> Result<()> {
    laptop::connect_with(&[])?;
    let (pod, service) = (cluster::pod("emojivoto", "app=web")?, cluster::service("emojivoto", "web-app")?);
    let forwarding = "/proc/sys/net/ipv4/ip_forward";
    let was = fs::read_to_string(forwarding)?;
    let result = (|| {
        for line in [
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "ip netns add guest",
            "ip link add guest0 type veth peer name eth0 netns guest",
            "ip addr add 192.168.99.1/24 dev guest0",
            "ip link set guest0 up",
            "ip -n guest addr add 192.168.99.2/24 dev eth0",
            "ip -n guest link set eth0 up",
            "ip -n guest route add default via 192.168.99.1",
        ] {
            sh(line)?.success().context(line)?;
        }
        for url in [format!("http://{}:8080", pod.v4), format!("http://{}", service.v4)] {
            let page = sh(&format!("ip netns exec guest curl -sS -m 10 {url}"))?.success().context(url.clone())?;
            ensure!(page.contains("Emoji Vote"), "{url}: {page}");
        }
        let bytes =
            sh(&format!("ip netns exec guest curl -sS -m 30 'http://{}/bytes?n=50000000&sum=no' | wc -c", service.v4))?;
        ensure!(bytes.stdout.trim() == "50000000", "{bytes:?}");
        sh(&format!("ip netns exec guest ping -c 1 -W 5 {}", pod.v4))?.success()?;
        let refused = sh(&format!("ip netns exec guest curl -sS -m 5 http://{}:81", pod.v4))?;
        ensure!(refused.code() == 7, "a closed port must be refused there as well: {refused:?}");
        Ok(())
    })();
    let _ = sh("ip link del guest0; ip netns del guest");
    fs::write(forwarding, was)?;
    result
}

/// Between laptop and cluster nothing larger than the least that IPv6 allows: nothing disappears.
fn narrow() -> Result<()> {
    laptop::quit()?;
    let device = "api0";
    let mtu = fs::read_to_string(format!("/sys/class/net/{device}/mtu"))?;
    sh(&format!("ip link set {device} mtu 1280"))?.success()?;
    let result = (|| {
        laptop::connect_with(&[])?;
        let (web, echo) = (cluster::service("emojivoto", "web-app")?, cluster::service("default", "echo")?);
        for ip in [web.v4.to_string(), format!("[{}]", web.v6)] {
            let down = sh(&format!("curl -sS -m 30 'http://{ip}/bytes?n=20000000&sum=no' | wc -c"))?;
            ensure!(down.stdout.trim() == "20000000", "down from {ip}: {down:?}");
            let up = sh(&format!("head -c 20000000 /dev/zero | curl -sS -m 30 -T - 'http://{ip}/sink?sum=no'"))?;
            ensure!(up.stdout.contains("20000000"), "up to {ip}: {up:?}");
        }
        for (local, ip) in [("0.0.0.0:0", echo.v4), ("[::]:0", echo.v6)] {
            let socket = UdpSocket::bind(local)?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            let (payload, mut answer) = (vec![7; 20_000], vec![0; 65_536]);
            let echoed = (0..3).any(|_| {
                socket.send_to(&payload, at(ip, 7)).is_ok()
                    && socket.recv_from(&mut answer).is_ok_and(|(count, _)| answer[..count] == payload)
            });
            ensure!(echoed, "20,000 bytes did not come back from {ip}");
        }
        laptop::quit()
    })();
    sh(&format!("ip link set {device} mtu {}", mtu.trim()))?.success()?;
    result?;
    residue::nothing_left()
}
