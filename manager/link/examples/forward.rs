//! `forward NAMESPACE POD LISTEN=TARGET...`: what `kubectl port-forward` does, through a lane to the manager in that pod.
//!
//! `forward load ADDRESS down|up|ping SECONDS` measures whatever listens at an address: MiB/s, or microseconds of a
//! 64-byte round trip (median and 99th percentile). The two together compare carriers by hand.

use std::{
    error::Error,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tpx_api::{VERSION, proto, proto::manager_client::ManagerClient};
use tpx_link::{
    Settings, Target,
    carrier::Connector,
    lane::{Lane, control},
    portforward::PortForward,
    relay::relay,
};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["load", address, what, seconds] => load(address.parse()?, what, seconds.parse()?).await,
        [namespace, pod, ref ports @ ..] if !ports.is_empty() => forward(namespace, pod, ports).await,
        _ => Err("usage: forward NAMESPACE POD LISTEN=TARGET... | forward load ADDRESS down|up|ping SECONDS".into()),
    }
}

async fn forward(namespace: &str, pod: &str, ports: &[&str]) -> Result {
    let config = kube::Config::infer().await?;
    // For comparison.
    let plain = std::env::var_os("PLAIN").is_some();
    let client = if plain { kube::Client::try_from(config)? } else { tpx_link::portforward::client(config)? };
    let road = PortForward::new(client, namespace, pod, tpx_api::MANAGER_PORT);
    let start = Instant::now();
    let mut manager = ManagerClient::new(control(road.connect().await?, &Settings::default()).await?);
    let arrive = proto::ArriveRequest { version: VERSION.into(), user: "forward".into(), namespace: "default".into() };
    let session = manager.arrive(arrive).await?.into_inner().session_id;
    let lane = Lane::open(road.connect().await?, &Settings::default()).await?;
    let facts = proto::WatchFactsRequest { session_id: session.clone(), addresses_of: Vec::new() };
    let facts = manager.watch_facts(facts).await?.into_inner().message().await?;
    println!("{} after {:?}: {facts:?}", road.describe(), start.elapsed());
    for port in ports {
        let (listen, target) = port.split_once('=').ok_or("LISTEN=TARGET")?;
        let (listener, target) = (TcpListener::bind(listen).await?, target.parse::<Target>()?);
        let (lane, session) = (lane.clone(), session.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (lane, session, target) = (lane.clone(), session.clone(), target.clone());
                tokio::spawn(async move {
                    match lane.connect(&target, &session).await {
                        Ok(stream) => drop(relay(socket, stream).await),
                        Err(failure) => eprintln!("{target}: {failure}"),
                    }
                });
            }
        });
    }
    loop {
        tokio::select! {
            reason = lane.closed() => return Err(reason.to_string().into()),
            () = tokio::time::sleep(Duration::from_secs(20)) => {
                manager.remain(proto::RemainRequest { session_id: session.clone() }).await?;
            }
        }
    }
}

async fn load(address: SocketAddr, what: &str, seconds: f64) -> Result {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut buffer = vec![0; 256 << 10];
    if what == "ping" {
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed().as_secs_f64() < seconds {
            let asked = Instant::now();
            socket.write_all(&buffer[..64]).await?;
            socket.read_exact(&mut buffer[..64]).await?;
            times.push(asked.elapsed());
        }
        times.sort_unstable();
        println!("{} {}", times[times.len() / 2].as_micros(), times[times.len() * 99 / 100].as_micros());
        return Ok(());
    }
    // The first quarter fills buffers and grows windows.
    let (start, mut counted, mut bytes) = (Instant::now(), None, 0);
    loop {
        let moved = if what == "up" { socket.write(&buffer).await? } else { socket.read(&mut buffer).await? };
        if moved == 0 {
            return Err("it ended".into());
        }
        let elapsed = start.elapsed().as_secs_f64();
        if counted.is_none() && elapsed > seconds / 4.0 {
            counted = Some(Instant::now());
            bytes = 0;
        }
        bytes += moved;
        if let Some(counted) = counted
            && elapsed > seconds
        {
            println!("{:.0}", bytes as f64 / counted.elapsed().as_secs_f64() / f64::from(1 << 20));
            return Ok(());
        }
    }
}
