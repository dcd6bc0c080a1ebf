//! The in-cluster traffic manager: sessions, cluster facts, dialling and name look-up from inside.
//!
//! Decisions are pure ([`state`]); the other modules carry them out.
#![forbid(unsafe_code)]

mod client_config;
pub mod control;
mod datagrams;
pub mod dial;
mod errqueue;
pub mod facts;
mod ping;
pub mod resolve;
pub mod sessions;
pub mod state;
pub mod streams;

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tpx_api::proto::manager_server::ManagerServer;
use tpx_link::{Settings, server};

use self::{control::Control, state::idle::Limits, streams::Streams};

/// Bytes of one laptop that pods do not read. Room for 64 of them that stall, and no more: one laptop with all of that and
/// the pods' send buffers in the kernel, which count as well, must stay far below the memory limit of this pod (1 GiB,
/// `manager/install/src/objects.rs`). Beyond it that laptop's uploads wait; out of memory, everybody's connections would end.
const CONNECTION_WINDOW: u32 = 128 << 20;

/// How long open streams may go on after the manager was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// HTTP/2 settings of the manager's end. Laptops ask first; the manager asks only when a laptop has been silent for
/// long, and frees everything when it does not answer.
#[must_use]
pub fn settings() -> Settings {
    Settings {
        connection_window: CONNECTION_WINDOW,
        heartbeat: Duration::from_secs(15),
        patience: Duration::from_secs(15),
        ..Settings::default()
    }
}

/// Serves laptops until `stop`, then lets open streams end for a few seconds. UDP associations end by `limits`.
pub async fn serve(listener: TcpListener, control: Control, limits: Limits, stop: CancellationToken) {
    let sessions = Arc::clone(control.sessions());
    let handler = Arc::new(Streams::new(Arc::clone(&sessions), limits));
    let service = ManagerServer::new(control).max_decoding_message_size(128 << 10);
    let settings = Arc::new(settings());
    let sweeper = tokio::spawn(Arc::clone(&sessions).sweep());
    let mut carriers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = carriers.join_next() => continue,
            () = stop.cancelled() => break,
        };
        let (carrier, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, most likely: others end.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = tpx_link::carrier::prepare(&carrier) {
            tracing::debug!(%peer, %error, "a carrier broke at once");
            continue;
        }
        let service = tower::ServiceBuilder::new()
            .map_request(|request: http::Request<tpx_link::lane::Incoming>| request.map(Body::new))
            .service(service.clone());
        let (handler, settings, stop) =
            (Arc::clone(&handler) as Arc<dyn server::Handler>, Arc::clone(&settings), stop.clone());
        carriers.spawn(async move {
            let end = server::serve(carrier, &settings, handler, service, stop).await;
            tracing::debug!(%peer, %end, "carrier ended");
        });
    }
    drop(listener);
    sweeper.abort();
    sessions.stop_watches();
    let rest = async { while carriers.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        tracing::info!("streams that were still open are cut off");
    }
}
