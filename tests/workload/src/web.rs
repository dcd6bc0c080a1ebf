//! The web page of the demo, with what a test of a network wants to ask a server for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

/// What `/bytes` repeats: 64 KiB in which byte i is (i * 7 + i / 256) mod 256.
const BLOCK: usize = 64 * 1024;
/// The longest wait that `/delay` grants.
const MAX_DELAY: u64 = 120_000;

type Body = BoxBody<Bytes, Infallible>;

/// Serves the page; an IPv6 wildcard address serves both families.
pub(crate) async fn serve(address: SocketAddr, title: &'static str) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        stream.set_nodelay(true).ok();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(request, peer, title));
            hyper::server::conn::http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

async fn answer(request: Request<Incoming>, peer: SocketAddr, title: &str) -> Result<Response<Body>, hyper::Error> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = |name: &str| option(&query, name).and_then(|value| value.parse::<u64>().ok());
    let sums = option(&query, "sum") != Some("no");
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => page(title),
        (&Method::GET, "/where") => {
            text(StatusCode::OK, "application/json", json!({"node": node(), "pod": host()}).to_string())
        }
        (&Method::GET, "/bytes") => bytes(number("n").unwrap_or(0), sums),
        (&Method::PUT | &Method::POST, "/sink") => return sink(request.into_body(), sums).await,
        (&Method::GET, "/delay") => {
            let wait = number("ms").unwrap_or(0).min(MAX_DELAY);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            text(StatusCode::OK, "text/plain", format!("after {wait} ms\n"))
        }
        (_, "/headers") => {
            let headers: Vec<_> = request
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
                .collect();
            text(StatusCode::OK, "application/json", json!({"method": request.method().as_str(), "peer": peer.to_string(), "host": host(), "headers": headers}).to_string())
        }
        (_, path) => text(StatusCode::NOT_FOUND, "text/plain", format!("no page {path}\n")),
    };
    Ok(response)
}

fn option<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The pod's own name.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The node that the pod runs on, which tells one cluster from another: the manifest hands it over.
fn node() -> String {
    std::env::var("NODE_NAME").unwrap_or_default()
}

fn page(title: &str) -> Response<Body> {
    let page = format!(
        "<!DOCTYPE html>\n<html>\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body><h1>{title}</h1><p>Served by {}</p></body>\n</html>\n",
        host()
    );
    text(StatusCode::OK, "text/html; charset=utf-8", page)
}

fn text(status: StatusCode, kind: &str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    }
    response
}

/// `count` bytes of the block over and over, their SHA-256 in `x-sha256` unless `sum=no` asks to save the time.
fn bytes(count: u64, sums: bool) -> Response<Body> {
    let block = Bytes::from((0..BLOCK).map(|i| ((i * 7 + i / 256) % 256) as u8).collect::<Vec<_>>());
    let pieces = move || {
        let block = block.clone();
        (0..count.div_ceil(BLOCK as u64)).map(move |i| {
            let size = (count - i * BLOCK as u64).min(BLOCK as u64) as usize;
            block.slice(..size)
        })
    };
    let mut headers = vec![(hyper::header::CONTENT_LENGTH, count.to_string())];
    if sums {
        let mut sum = Sha256::new();
        pieces().for_each(|piece| sum.update(&piece));
        headers.push((hyper::header::HeaderName::from_static("x-sha256"), hex(&sum.finalize())));
    }
    let body = StreamBody::new(stream::iter(pieces().map(|piece| Ok(Frame::data(piece)))));
    let mut response = Response::new(BodyExt::boxed(body));
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Counts what it is sent, and says how much and which SHA-256 it was.
async fn sink(mut body: Incoming, sums: bool) -> Result<Response<Body>, hyper::Error> {
    let (mut count, mut sum) = (0, Sha256::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            count += data.len();
            if sums {
                sum.update(&data);
            }
        }
    }
    let sum = sums.then(|| hex(&sum.finalize()));
    Ok(text(StatusCode::OK, "application/json", format!("{}\n", json!({"bytes": count, "sha256": sum}))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
