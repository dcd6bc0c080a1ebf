//! One-stream throughput: pieces of known length over one HTTP connection until the time is up, so that every byte
//! counted has arrived and the connection ends in order.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tpx_bench::said::Bulk;

const BUFFER: usize = 256 * 1024;
/// One request's bytes: long enough that the pause between two does not count.
const PIECE: u64 = 32 << 20;
/// One request's bytes while somebody else may say when it is enough.
const SMALL_PIECE: u64 = 8 << 20;
/// What warms the connection up, untimed.
const WARM: u64 = 8 << 20;

/// Downloads for about `seconds`.
pub(super) fn down(address: SocketAddr, seconds: f64) -> Result<Bulk> {
    timed(address, seconds, get)
}

/// Uploads for about `seconds`; the server has said that it has it all.
pub(super) fn up(address: SocketAddr, seconds: f64) -> Result<Bulk> {
    timed(address, seconds, put)
}

/// Downloads until `enough`; `begun` is set once bytes flow.
pub(super) fn down_until(address: SocketAddr, begun: &AtomicBool, enough: &AtomicBool) -> Result<Bulk> {
    let mut stream = super::connect(address)?;
    let mut buffer = vec![0; BUFFER];
    get(&mut stream, &mut buffer, WARM)?;
    begun.store(true, Ordering::Release);
    let begin = Instant::now();
    let mut bytes = 0;
    while !enough.load(Ordering::Acquire) {
        get(&mut stream, &mut buffer, SMALL_PIECE)?;
        bytes += SMALL_PIECE;
    }
    Ok(Bulk { bytes, seconds: begin.elapsed().as_secs_f64(), total: bytes + WARM })
}

type Move = fn(&mut TcpStream, &mut [u8], u64) -> Result<()>;

fn timed(address: SocketAddr, seconds: f64, step: Move) -> Result<Bulk> {
    let mut stream = super::connect(address)?;
    let mut buffer: Vec<u8> = (0..BUFFER).map(|i| (i % 251) as u8).collect();
    step(&mut stream, &mut buffer, WARM)?;
    let limit = Duration::from_secs_f64(seconds);
    let begin = Instant::now();
    let mut bytes = 0;
    while begin.elapsed() < limit {
        step(&mut stream, &mut buffer, PIECE)?;
        bytes += PIECE;
    }
    Ok(Bulk { bytes, seconds: begin.elapsed().as_secs_f64(), total: bytes + WARM })
}

fn get(stream: &mut TcpStream, buffer: &mut [u8], count: u64) -> Result<()> {
    write!(stream, "GET /bytes?n={count}&sum=no HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let length = body(stream, buffer)?;
    ensure!(length == count, "{length} bytes came instead of {count}");
    Ok(())
}

fn put(stream: &mut TcpStream, buffer: &mut [u8], count: u64) -> Result<()> {
    write!(stream, "PUT /sink?sum=no HTTP/1.1\r\nHost: bench\r\nContent-Length: {count}\r\n\r\n")?;
    let mut left = count;
    while left > 0 {
        let size = left.min(buffer.len() as u64);
        stream.write_all(buffer.get(..size as usize).unwrap_or_default())?;
        left -= size;
    }
    // The answer says how much arrived; its length says nothing, so it is read apart from the pattern in `buffer`.
    let mut answer = [0; 4096];
    let (size, start) = head(stream, &mut answer)?;
    let length = length(&answer[..start])?;
    let mut end = size;
    while ((end - start) as u64) < length {
        let count = stream.read(answer.get_mut(end..).context("a long answer")?)?;
        ensure!(count > 0, "the connection ended inside the answer");
        end += count;
    }
    let said: serde_json::Value = serde_json::from_slice(&answer[start..end]).context("the answer is not JSON")?;
    ensure!(said["bytes"] == count, "{} bytes arrived instead of {count}", said["bytes"]);
    Ok(())
}

/// Reads an answer to its end and returns its body's length.
fn body(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<u64> {
    let (size, start) = head(stream, buffer)?;
    let length = length(buffer.get(..start).unwrap_or_default())?;
    let mut left = length.checked_sub((size - start) as u64).context("more came than was said")?;
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        let count = stream.read(buffer.get_mut(..most).unwrap_or_default()).context("inside the body")?;
        ensure!(count > 0, "the connection ended {left} bytes early");
        left -= count as u64;
    }
    Ok(length)
}

/// Reads until the head of an answer is there; how much was read, and where the body starts.
fn head(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<(usize, usize)> {
    let mut size = 0;
    loop {
        let count = stream.read(buffer.get_mut(size..).unwrap_or_default()).context("no answer")?;
        ensure!(count > 0, "the connection ended inside the answer's head");
        size += count;
        if let Some(at) = buffer.get(..size).unwrap_or_default().windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok((size, at + 4));
        }
    }
}

/// The body's length, from a head that says all is well.
fn length(head: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(head).context("the answer's head is not text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("the server says {status:?}");
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("the answer has no length")
}

#[cfg(test)]
mod tests {
    use super::length;

    #[test]
    fn the_length_is_found_whatever_the_case() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-LENGTH: 42\r\n\r\n").unwrap(), 42);
    }

    #[test]
    fn only_a_good_answer_with_a_length_counts() {
        assert!(length(b"HTTP/1.1 404 Not Found\r\ncontent-length: 42\r\n\r\n").is_err());
        assert!(length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(length(b"\xff\xfe").is_err());
    }
}
