//! The user daemon: one process a connection. It holds everything that lives as long as the connection does, and ends
//! with it.

mod addresses;
mod cluster;
mod connect;
mod connection;
mod container;
mod datagrams;
mod datapath;
mod directory;
#[cfg(test)]
mod fake_manager;
mod flow_table;
mod flows;
mod insight;
pub(crate) mod kubernetes;
mod lanes;
mod logging;
mod names;
mod netstream;
mod owners;
pub(crate) mod probe;
mod process_scope;
mod processes;
mod question_flows;
mod resolv_conf;
pub(crate) mod road;
mod routing;
mod service_names;
mod session;
mod sock_diag;
pub(crate) mod status;
mod tree;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tpx_core::config::Config;

use self::connection::{Connection, Ended};
use crate::{
    failure::{Failure, Kind, chain},
    ipc::{self, Bound, ConnectParams, Exchange, Reply, Request},
    paths,
};

/// A daemon that nobody asks to connect does not stay.
const UNASKED: Duration = Duration::from_secs(30);
/// How long a lost connection may take to come back, and the pause between attempts.
const COMEBACK: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(300);

/// Runs the user daemon called `name` until its connection ends.
pub(crate) fn main(name: &str) -> Result<ExitCode, Failure> {
    let run = || -> Result<()> {
        // Ctrl-C in the terminal of `tpx connect` is not meant for the daemon.
        let _ = rustix::process::setsid();
        logging::start();
        tpx_datapath::linux::return_large_blocks();
        // One socket a flow: the usual soft limit of 1,024 files is soon reached.
        let files = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(name))?;
        // A blocked look-up must not keep the process.
        runtime.shutdown_timeout(Duration::from_millis(200));
        Ok(())
    };
    run().map(|()| ExitCode::SUCCESS).map_err(|e| Failure::internal(chain(e.as_ref())))
}

async fn serve(name: &str) -> Result<()> {
    let bound = ipc::bind(&paths::socket(name)?)?;
    let mut end = End { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let (mut connection, params) = match until_connected(&bound, name).await {
        Outcome::Connected(connection, params) => (*connection, params),
        Outcome::Failed(mut exchange, failure) => {
            tracing::error!("{failure}");
            drop(bound);
            let _ = exchange.send(&Reply::Failed(failure)).await;
            return Ok(());
        }
        Outcome::Nothing => return Ok(()),
    };
    let asker = loop {
        match stay(&bound, &mut connection, &mut end).await {
            Stayed::Asked(exchange) => break Some(exchange),
            Stayed::Done => break None,
            Stayed::Lost(why) => {
                tracing::error!("the connection has ended: {why}");
                let again = connection.may_come_back().await;
                connection.close().await;
                let Some(next) = (if again { come_back(&bound, name, &params, &why, &mut end).await } else { None })
                else {
                    return Ok(());
                };
                connection = *next;
            }
        }
    };
    connection.close().await;
    // The socket's file goes first: who sees the answer can connect anew at once.
    drop(bound);
    if let Some(mut exchange) = asker {
        let _ = exchange.send(&Reply::Done).await;
    }
    Ok(())
}

/// The signals that end the daemon.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    /// Cancel safe.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Until when a connection has stayed.
enum Stayed {
    /// Somebody asked for its end, and waits for it.
    Asked(Exchange),
    /// Nobody needed it any more.
    Done,
    /// It could not go on, with the reason.
    Lost(String),
}

/// Answers requests until the connection is over.
async fn stay(bound: &Bound, connection: &mut Connection, end: &mut End) -> Stayed {
    loop {
        tokio::select! {
            (request, exchange) = bound.next() => {
                if matches!(request, Request::Quit) {
                    return Stayed::Asked(exchange);
                }
                connection.answer(request, exchange);
            }
            ended = connection.ended() => return match ended {
                Ended::Lost(why) => Stayed::Lost(why),
                Ended::Done(why) => {
                    tracing::info!("the connection has ended: {why}");
                    Stayed::Done
                }
            },
            () = end.asked() => return Stayed::Done,
        }
    }
}

/// Connects once more after a loss, as soon as it can be done; `None` when that takes too long, or somebody asked for the end.
async fn come_back(
    bound: &Bound,
    name: &str,
    params: &ConnectParams,
    lost: &str,
    end: &mut End,
) -> Option<Box<Connection>> {
    let mut attempts = std::pin::pin!(async {
        loop {
            let (progress, _steps) = mpsc::unbounded_channel();
            match connect::connect(name, params.clone(), progress).await {
                Ok(connection) => return connection,
                Err(failure) => tracing::warn!("not connected again yet: {failure}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    let mut late = std::pin::pin!(tokio::time::sleep(COMEBACK));
    loop {
        tokio::select! {
            connection = &mut attempts => {
                tracing::info!("connected again");
                return Some(Box::new(connection));
            }
            () = &mut late => {
                tracing::error!("could not connect again within {COMEBACK:?}");
                return None;
            }
            () = end.asked() => return None,
            (request, mut exchange) = bound.next() => match request {
                Request::Quit => {
                    let _ = exchange.send(&Reply::Done).await;
                    return None;
                }
                _ => not_yet(exchange, &format!("reconnecting, because {lost}")).await,
            },
        }
    }
}

/// What became of the one request to connect.
enum Outcome {
    Connected(Box<Connection>, Box<ConnectParams>),
    /// To be told to who asked, once nothing is left that a next attempt would find.
    Failed(Exchange, Failure),
    /// Nobody asked, or who asked has left.
    Nothing,
}

/// Answers requests until one has asked to connect, and connects.
async fn until_connected(bound: &Bound, name: &str) -> Outcome {
    loop {
        let Ok((request, mut exchange)) = tokio::time::timeout(UNASKED, bound.next()).await else {
            tracing::info!("nobody asked to connect");
            return Outcome::Nothing;
        };
        match request {
            Request::Connect(params) => {
                logging::set(Config::from((*params.settings).clone()).log_user_daemon.value);
                return connect_for(bound, name, params, exchange).await;
            }
            Request::Quit => {
                let _ = exchange.send(&Reply::Done).await;
                return Outcome::Nothing;
            }
            _ => not_yet(exchange, "not connected").await,
        }
    }
}

/// One attempt to connect, as `exchange` asked. Whoever else asks meanwhile is told so; when the asker leaves, the
/// attempt ends with it.
async fn connect_for(bound: &Bound, name: &str, params: ConnectParams, mut exchange: Exchange) -> Outcome {
    let (progress, mut steps) = mpsc::unbounded_channel();
    let mut attempt = std::pin::pin!(connect::connect(name, params.clone(), progress));
    let result = loop {
        tokio::select! {
            result = &mut attempt => break result,
            Some(step) = steps.recv() => {
                if exchange.send(&Reply::Progress(step)).await.is_err() {
                    return Outcome::Nothing;
                }
            }
            () = exchange.closed() => {
                tracing::info!("the command line left while connecting");
                return Outcome::Nothing;
            }
            (_, other) = bound.next() => not_yet(other, "still connecting").await,
        }
    };
    match result {
        Ok(connection) => {
            let status = Box::new(connection.status().await);
            if exchange.send(&Reply::Status(status)).await.is_err() {
                connection.close().await;
                return Outcome::Nothing;
            }
            Outcome::Connected(Box::new(connection), Box::new(params))
        }
        Err(failure) => Outcome::Failed(exchange, failure),
    }
}

async fn not_yet(mut exchange: Exchange, what: &str) {
    let failure = Failure::new(Kind::NotConnected, what, "wait for `tpx connect`, or run it");
    let _ = exchange.send(&Reply::Failed(failure)).await;
}
