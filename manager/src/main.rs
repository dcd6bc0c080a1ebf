//! The traffic manager's process.

use std::{env, net::IpAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use kube::Client;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tpx_api::{CLIENT_CONFIG_FOLDER, CLIENT_CONFIG_KEY, MANAGER_PORT, VERSION};
use tpx_manager::{
    control::Control,
    facts::{Fixed, watch_cluster},
    resolve::{ResolvConf, Resolver},
    serve,
    sessions::Sessions,
    state::idle::Limits,
};
use tracing_subscriber::EnvFilter;

/// What Kubernetes calls a cluster that was given no other domain.
const DEFAULT_DOMAIN: &str = "cluster.local";

fn main() -> anyhow::Result<()> {
    if env::args().nth(1).is_some_and(|argument| argument == "--version") {
        println!("tpx-manager {VERSION}");
        return Ok(());
    }
    let filter = EnvFilter::try_from_env("TPX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_target(false).init();
    // One socket a stream: the soft limit, which container runtimes may leave at 1,024, is soon reached.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
    }
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });

    let text = std::fs::read_to_string("/etc/resolv.conf").context("reading /etc/resolv.conf")?;
    let conf = ResolvConf::parse(&text);
    let cluster_domain = conf.cluster_domain.unwrap_or_else(|| DEFAULT_DOMAIN.to_owned());
    let resolver = Resolver::new(conf.servers.into_iter().map(|server| (server, 53).into()).collect());

    let client = Client::try_default().await.context("the cluster's API cannot be used from here")?;
    let (facts_tx, facts) = watch::channel(None);
    let client_config = Path::new(CLIENT_CONFIG_FOLDER).join(CLIENT_CONFIG_KEY);
    let fixed = Fixed { cluster_domain, manager_addresses: own_addresses(), client_config };
    tracing::info!(version = VERSION, domain = fixed.cluster_domain, addresses = ?fixed.manager_addresses, "starting");
    let watching = tokio::spawn(watch_cluster(client, fixed, facts_tx));

    let listener = TcpListener::bind(("::", MANAGER_PORT)).await;
    let listener = match listener {
        Ok(listener) => listener,
        // A kernel without IPv6.
        Err(_) => TcpListener::bind(("0.0.0.0", MANAGER_PORT)).await.context("listening")?,
    };
    serve(listener, Control::new(Arc::new(Sessions::default()), facts, resolver), Limits::default(), stop).await;
    watching.abort();
    tracing::info!("stopped");
    Ok(())
}

/// The pod's addresses, as the Deployment hands them in (`TPX_POD_IPS`, separated by commas).
fn own_addresses() -> Vec<IpAddr> {
    let text = env::var("TPX_POD_IPS").unwrap_or_default();
    text.split(',').filter_map(|address| address.trim().parse().ok()).collect()
}
