//! Datagrams that want an answer: names asked of a name server, or any bytes of an echo. A new one is sent for each that is
//! answered, so that the same number is always out.

use std::collections::VecDeque;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tpx_bench::said::Asked;
use tpx_bench::stats::quantile;

/// What is not answered by then is lost.
const LOST: Duration = Duration::from_millis(500);
/// Port of name servers (RFC 1035, 4.2).
const DNS: u16 = 53;

/// How much is asked.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct Amount {
    /// How many are out at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    at_once: u16,
    /// How many in all
    #[arg(long, default_value_t = 1_000_000)]
    count: usize,
    /// And at most for how long, in seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// Asks for the IPv4 address of `name`; without a server the first one of resolv.conf(5).
pub(super) fn dns(server: Option<SocketAddr>, name: &str, amount: Amount) -> Result<Asked> {
    let server = match server {
        Some(server) => server,
        None => configured(&fs::read_to_string("/etc/resolv.conf")?).context("resolv.conf names no server")?,
    };
    let query = query(name)?;
    let is = |answer: &[u8]| has_address(answer).with_context(|| format!("{server} about {name}"));
    run(server, &query, amount, is)
}

/// Sends `size` bytes each.
pub(super) fn echo(address: SocketAddr, size: usize, amount: Amount) -> Result<Asked> {
    ensure!(size >= 2, "a datagram needs room for a number");
    run(address, &vec![0x5a; size], amount, |answer| {
        ensure!(answer.len() == size, "{} bytes came back instead of {size}", answer.len());
        Ok(())
    })
}

/// Sends `message` again and again, each time with another number in its first two bytes, which the answer begins with.
fn run(to: SocketAddr, message: &[u8], amount: Amount, check: impl Fn(&[u8]) -> Result<()>) -> Result<Asked> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    socket.set_read_timeout(Some(LOST))?;
    // The first may have to be fetched from elsewhere.
    once(&socket, message, &check).with_context(|| format!("{to} does not answer"))?;
    let mut message = message.to_vec();
    let mut answer = vec![0; 65_536];
    // When each number was sent, as long as it is out.
    let mut sent: Vec<Option<Instant>> = vec![None; 1 << 16];
    let mut order = VecDeque::new();
    let (mut times, mut lost, mut next, mut out) = (Vec::new(), 0_usize, 0_u16, 0_u16);
    let (begin, limit) = (Instant::now(), Duration::from_secs_f64(amount.seconds));
    loop {
        while out < amount.at_once && times.len() + lost + usize::from(out) < amount.count && begin.elapsed() < limit {
            next = next.wrapping_add(1);
            message.splice(..2, next.to_be_bytes());
            let now = Instant::now();
            if socket.send(&message)? != message.len() {
                bail!("a datagram was cut off");
            }
            sent[usize::from(next)] = Some(now);
            order.push_back((next, now));
            out += 1;
        }
        if out == 0 {
            break;
        }
        match socket.recv(&mut answer) {
            Ok(length) => {
                let number = answer[..length].first_chunk().map_or(0, |number| u16::from_be_bytes(*number));
                if let Some(at) = sent[usize::from(number)].take() {
                    times.push(at.elapsed().as_secs_f64() * 1e3);
                    out -= 1;
                    check(&answer[..length])?;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).with_context(|| format!("ask {to}")),
        }
        while let Some((number, at)) = order.front().copied() {
            // The number may be out again, on behalf of a later one.
            let same = sent[usize::from(number)] == Some(at);
            if same && at.elapsed() < LOST {
                break;
            }
            if same {
                sent[usize::from(number)] = None;
                lost += 1;
                out -= 1;
            }
            order.pop_front();
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let at = |part| quantile(&times, part).context("nothing was answered");
    Ok(Asked { count: times.len(), lost, seconds, p50: at(0.5)?, p99: at(0.99)? })
}

fn once(socket: &UdpSocket, message: &[u8], check: &impl Fn(&[u8]) -> Result<()>) -> Result<()> {
    let mut answer = vec![0; 65_536];
    for _ in 0..10 {
        socket.send(message)?;
        match socket.recv(&mut answer) {
            Ok(length) => return check(&answer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("silence")
}

fn configured(resolv_conf: &str) -> Option<SocketAddr> {
    let mut words = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver "));
    Some(SocketAddr::new(words.next()?.trim().parse::<IpAddr>().ok()?, DNS))
}

/// A question of class IN and type A, as the C library sends it.
fn query(name: &str) -> Result<Vec<u8>> {
    // Number 0; recursion desired; one question.
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length));
        bytes.push(length.with_context(|| format!("{name:?} is no name"))?);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    Ok(bytes)
}

/// Whether the answer's head (RFC 1035, 4.1.1) says that there is something.
fn has_address(answer: &[u8]) -> Result<()> {
    let Some([_, _, flags, code, _, _, high, low]) = answer.first_chunk() else { bail!("no DNS message") };
    ensure!(flags & 0x80 != 0, "a question came back");
    ensure!(code & 0x0f == 0, "the answer is error {}", code & 0x0f);
    ensure!(u16::from_be_bytes([*high, *low]) > 0, "the answer has no address");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every datagram that `is` lets pass.
    fn server(is: impl Fn(usize) -> bool + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            for turn in 0.. {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                if is(turn) {
                    socket.send_to(&buffer[..length], from).unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn as_many_are_answered_as_were_asked() {
        let to = server(|_| true);
        for at_once in [1, 32] {
            let asked = echo(to, 64, Amount { at_once, count: 500, seconds: 20.0 }).unwrap();
            assert_eq!((asked.count, asked.lost), (500, 0));
            assert!(asked.p50 > 0.0 && asked.p50 <= asked.p99 && asked.rate() > 0.0);
        }
    }

    #[test]
    fn what_is_not_answered_is_counted_and_holds_nothing_up() {
        // The first datagram is the one that warms up.
        let to = server(|turn| turn % 50 != 5);
        let asked = echo(to, 64, Amount { at_once: 8, count: 200, seconds: 20.0 }).unwrap();
        assert_eq!((asked.count, asked.lost), (196, 4));
    }

    #[test]
    fn an_answer_must_be_one() {
        assert!(has_address(&[0, 1, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]).is_ok());
        for wrong in [
            &[0, 1, 0x01, 0x00, 0, 1, 0, 1][..],
            &[0, 1, 0x81, 0x83, 0, 1, 0, 1],
            &[0, 1, 0x81, 0x80, 0, 1, 0, 0],
            &[0, 1],
        ] {
            assert!(has_address(wrong).is_err(), "{wrong:?}");
        }
        assert!(query("a..b").is_err() && query("").is_err());
        assert_eq!(query("ab.c").unwrap()[12..], *b"\x02ab\x01c\0\0\x01\0\x01");
    }

    #[test]
    fn the_first_name_server_counts() {
        let text = "search x\nnameserver 198.51.100.53\nnameserver 192.0.2.1\n";
        assert_eq!(configured(text), Some("198.51.100.53:53".parse().unwrap()));
        assert_eq!(configured("options edns0\n"), None);
    }
}
