//! connect() tells the truth: the same errors, at the same time, as inside the cluster.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;

use super::Case;
use crate::{
    cluster, laptop,
    laptop::{Saw, at},
    process::{eventually, sh},
};

pub(super) const CASES: &[Case] = &[
    ("semantics::a_closed_port_is_refused", refused),
    ("semantics::a_service_without_pods_is_refused", nobody),
    ("semantics::an_address_without_pod_is_unreachable", unreachable),
    ("semantics::connect_says_what_it_says_inside_a_pod", as_inside),
    ("semantics::a_silent_port_times_out", silent),
    ("semantics::a_slow_dial_succeeds_when_it_does", slow),
    ("semantics::nobody_sees_accept_then_reset", never_accepted),
    ("semantics::five_hundred_at_once", five_hundred),
    ("semantics::giving_up_while_held_leaves_nothing", giving_up),
];

/// Both ways to connect must tell the same.
fn each_way(address: SocketAddr, patience: &str, check: impl Fn(&Saw) -> bool) -> Result<()> {
    for how in ["blocking", "non-blocking", "io-uring"] {
        let saw = laptop::probe(address, &["--how", how, "--patience", patience])?;
        ensure!(check(&saw), "{how} {address}: {saw:?}");
    }
    Ok(())
}

fn is(saw: &Saw, errno: Errno) -> bool {
    !saw.connected && saw.errno == Some(errno.raw_os_error())
}

fn refused() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    let service = cluster::service("default", "echo")?;
    for ip in [pod.v4, pod.v6, service.v4, service.v6] {
        each_way(at(ip, 1009), "5000", |saw| is(saw, Errno::CONNREFUSED) && saw.milliseconds < 1000)?;
    }
    Ok(())
}

fn nobody() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("default", "nobody")?;
    // kube-proxy rejects it; what the node's own kernel says is the truth to be told.
    for ip in [service.v4, service.v6] {
        each_way(at(ip, 80), "5000", |saw| is(saw, Errno::CONNREFUSED))?;
    }
    Ok(())
}

/// An address of the pods' subnet that no pod has.
fn vacant(pod: IpAddr) -> Result<IpAddr> {
    Ok(match pod {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 251])
        }
        IpAddr::V6(ip) => {
            let mut segments = ip.segments();
            segments[7] = 0xfffb;
            IpAddr::from(segments)
        }
    })
}

fn unreachable() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    let saw = laptop::probe(at(vacant(pod.v4)?, 80), &["--patience", "20000"])?;
    ensure!(is(&saw, Errno::HOSTUNREACH) && saw.milliseconds < 10_000, "{saw:?}");
    Ok(())
}

/// The same call inside a pod is the judge: whatever it says there, it must say here.
fn as_inside() -> Result<()> {
    laptop::connect()?;
    let (pod, service) = (cluster::pod("default", "app=echo")?, cluster::service("default", "echo")?);
    let nobody = cluster::service("default", "nobody")?;
    let mut addresses = Vec::new();
    for ip in [pod.v4, pod.v6, service.v4, service.v6] {
        addresses.extend([at(ip, 7), at(ip, 1007), at(ip, 1008), at(ip, 1009)]);
    }
    // Ports that no service has, an address of the services' subnet that no service has, a pod that is not there.
    addresses.extend([at(service.v4, 4), at(service.v6, 4), at(nobody.v4, 80), at(nobody.v6, 80)]);
    addresses.extend([at(vacant(service.v4)?, 80), at(vacant(pod.v4)?, 80), at(vacant(pod.v6)?, 80)]);
    for address in addresses {
        let inside = inside(address)?;
        let here = laptop::probe(address, &["--patience", "3000"])?;
        ensure!((here.connected, here.errno) == inside, "{address}: here {here:?}, inside {inside:?}");
    }
    Ok(())
}

/// What connect() says in a pod. A time-out of the caller's own counts as the kernel's.
fn inside(address: SocketAddr) -> Result<(bool, Option<i32>)> {
    let line = format!("kubectl -n emojivoto exec deploy/web -- /tpx-workload dial {address} 3000");
    let said: serde_json::Value = serde_json::from_str(&sh(&line)?.success()?)?;
    let connected = said["connected"].as_bool().context("no answer")?;
    let errno = said["errno"].as_i64().and_then(|n| i32::try_from(n).ok());
    Ok((connected, errno.or_else(|| (!connected).then_some(Errno::TIMEDOUT.raw_os_error()))))
}

fn silent() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for ip in [pod.v4, pod.v6] {
        let saw = laptop::probe(at(ip, 1008), &["--patience", "2500"])?;
        ensure!(is(&saw, Errno::TIMEDOUT) && saw.milliseconds >= 2400, "{ip}: {saw:?}");
    }
    Ok(())
}

/// The echo's slow port drops the first SYN of a connection, so the dial inside the cluster takes the second until the
/// SYN is sent again.
fn slow() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for ip in [pod.v4, pod.v6] {
        each_way(at(ip, 1007), "8000", |saw| saw.connected && (900..2500).contains(&saw.milliseconds))?;
    }
    Ok(())
}

/// While the cluster's answer is outstanding the socket is in SYN-SENT, never established.
fn never_accepted() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for (port, patience) in [(1008, "1500"), (1007, "5000"), (1009, "2000")] {
        let address = at(pod.v4, port);
        let prober = thread::spawn(move || laptop::probe(address, &["--patience", patience]));
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(700) {
            let seen = sh(&format!("ss -Htn state established dst {} dport = :{port}", address.ip()))?.stdout;
            ensure!(seen.trim().is_empty(), "established before the cluster answered: {seen}");
            thread::sleep(Duration::from_millis(20));
        }
        prober.join().ok().context("the prober panicked")??;
    }
    Ok(())
}

fn five_hundred() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    let workers: Vec<_> = (0..500)
        .map(|n| {
            // Every tenth goes to the closed port.
            let (port, expected) = if n % 10 == 0 { (1009, false) } else { (7, true) };
            let address = at(pod.v4, port);
            let worker = move || (TcpStream::connect_timeout(&address, Duration::from_secs(20)), expected);
            thread::Builder::new().stack_size(128 << 10).spawn(worker)
        })
        .collect::<std::io::Result<_>>()?;
    let mut refused = 0;
    for worker in workers {
        let (result, expected) = worker.join().ok().context("a worker panicked")?;
        match result {
            Ok(_) => ensure!(expected, "the closed port accepted"),
            Err(e) => {
                ensure!(!expected && e.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()), "{e}");
                refused += 1;
            }
        }
    }
    ensure!(refused == 50, "{refused} were refused");
    no_held(&[7, 1009])
}

fn giving_up() -> Result<()> {
    laptop::connect()?;
    let pod = cluster::pod("default", "app=echo")?;
    for _ in 0..20 {
        let saw = laptop::probe(at(pod.v4, 1007), &["--how", "non-blocking", "--patience", "0"])?;
        ensure!(is(&saw, Errno::TIMEDOUT), "{saw:?}");
    }
    // The dials succeed a second later, to nobody.
    no_held(&[1007])
}

/// Within ten seconds no first packet to these ports is held any more. (Others may be: where the cluster itself still
/// waits for an answer.)
pub(super) fn no_held(ports: &[u16]) -> Result<()> {
    eventually(Duration::from_secs(10), || {
        let maps: serde_json::Value = serde_json::from_str(&sh("tpx maps dump --format json")?.success()?)?;
        let of = |row: &&serde_json::Value| {
            let to: Option<SocketAddr> = row["destination"].as_str().and_then(|to| to.parse().ok());
            to.is_some_and(|to| ports.contains(&to.port()))
        };
        let held: Vec<_> = maps["held"].as_array().context("no list")?.iter().filter(of).collect();
        ensure!(held.is_empty(), "held: {held:?}");
        Ok(())
    })
}
