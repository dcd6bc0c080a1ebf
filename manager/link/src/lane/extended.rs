//! Extended `CONNECT` (RFC 8441): UDP associations and echo requests.

use std::{future::poll_fn, net::IpAddr};

use h2::ext::Protocol;
use http::{HeaderValue, Method, Request, Uri};
use tokio::time::sleep_until;
use tpx_api::SESSION_HEADER;
use tpx_core::dial::DialFailure;

use super::Lane;
use crate::{
    Datagrams, Echoes, Target, datagrams, echoes,
    exchange::{CAPSULE_PROTOCOL, Exchange},
    stream::Open,
};

impl Lane {
    /// Opens a UDP association. Returns as soon as the request is on its way, so that the first datagram follows at once;
    /// whether the far side could make a socket is heard from [`Datagrams::recv`].
    ///
    /// # Errors
    /// [`DialFailure::Tunnel`] when the lane is lost, or the other end knows no extended `CONNECT`.
    pub async fn datagrams(&self, target: &Target, session: &str) -> Result<Datagrams, DialFailure> {
        let path = datagrams::path(target);
        Ok(Datagrams::new(self.exchange(datagrams::PROTOCOL, &path, session).await?))
    }

    /// Opens a series of echo requests to `target`, in the same way.
    ///
    /// # Errors
    /// As [`datagrams`](Self::datagrams).
    pub async fn echoes(&self, target: IpAddr, session: &str) -> Result<Echoes, DialFailure> {
        let path = echoes::path(target);
        Ok(Echoes::new(self.exchange(echoes::PROTOCOL, &path, session).await?))
    }

    async fn exchange(&self, protocol: &'static str, path: &str, session: &str) -> Result<Exchange, DialFailure> {
        let lost = |error: &dyn std::fmt::Display| {
            tracing::debug!(path, %error, "no stream");
            DialFailure::Tunnel
        };
        if !self.allows_extended().await {
            if !self.is_closed() {
                tracing::warn!(
                    "the other end does not allow extended CONNECT (RFC 8441): no UDP and no ping through it"
                );
            }
            return Err(DialFailure::Tunnel);
        }
        let uri = Uri::builder().scheme("https").authority("traffic-manager").path_and_query(path);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri.build().map_err(|error| lost(&error))?)
            .extension(Protocol::from_static(protocol))
            .header(CAPSULE_PROTOCOL, HeaderValue::from_static("?1"))
            .header(SESSION_HEADER, session)
            .body(())
            .map_err(|error| lost(&error))?;
        let open = Open::new(&self.state.streams);
        let mut requests = self.requests.clone();
        poll_fn(|cx| requests.poll_ready(cx)).await.map_err(|error| lost(&error))?;
        let (response, mut send) = requests.send_request(request, false).map_err(|error| lost(&error))?;
        // Room is given when the request goes out; that is a matter of this process alone.
        send.reserve_capacity(1);
        // None or an error: the answer is there already, and it is a refusal.
        let _ = poll_fn(|cx| send.poll_capacity(cx)).await;
        send.reserve_capacity(0);
        Ok(Exchange::asked(send, response, open))
    }

    /// Waits for the other end's settings (RFC 8441 section 3), which are the first thing that it sends.
    async fn allows_extended(&self) -> bool {
        loop {
            let moved = self.state.moved.notified();
            if self.requests.is_extended_connect_protocol_enabled() {
                return true;
            }
            tokio::select! {
                () = moved => {}
                () = sleep_until(self.state.settled_by) => return false,
                _ = self.closed() => return false,
            }
        }
    }
}
