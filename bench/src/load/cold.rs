//! From nothing to the first byte of a page, with the commands that a person would type.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tpx_bench::said::Cold;

use super::PATIENCE;

const NAMESPACE: &str = "emojivoto";
const SERVICE: &str = "web-app";

#[derive(clap::Subcommand)]
pub(super) enum Road {
    /// `tpx connect`, then the page by its name; stays connected
    Tpx {
        /// The datapath, instead of what tpx chooses
        #[arg(long)]
        datapath: Option<String>,
        /// kubeconfig's context, instead of the current one
        #[arg(long)]
        context: Option<String>,
    },
    /// `kubectl get pods`, `kubectl port-forward`, then the page; ends the port-forward
    Kubectl,
}

pub(super) fn run(road: &Road) -> Result<Cold> {
    match road {
        Road::Tpx { datapath, context } => tpx(datapath.as_deref(), context.as_deref()),
        Road::Kubectl => kubectl(),
    }
}

fn tpx(datapath: Option<&str>, context: Option<&str>) -> Result<Cold> {
    let begin = Instant::now();
    let datapath = datapath.map(|datapath| format!("--datapath={datapath}"));
    let context = context.map(|context| format!("--context={context}"));
    done(Command::new("tpx").arg("connect").args(datapath).args(context))?;
    let ready = begin.elapsed().as_secs_f64();
    let name = format!("{SERVICE}.{NAMESPACE}:80");
    let mut addresses = name.to_socket_addrs().with_context(|| format!("no address for {name}"))?;
    let first = first_byte(addresses.next().with_context(|| format!("no address for {name}"))?)?;
    Ok(Cold { ready, first_byte: (first - begin).as_secs_f64() })
}

fn kubectl() -> Result<Cold> {
    let begin = Instant::now();
    done(Command::new("kubectl").args(["get", "pods", "--namespace", NAMESPACE]))?;
    let mut child = Command::new("kubectl")
        .args(["port-forward", "--namespace", NAMESPACE, "--address=127.0.0.1", &format!("svc/{SERVICE}"), ":80"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    let seen = forwarded(&mut child).and_then(|port| {
        let ready = begin.elapsed().as_secs_f64();
        let first = first_byte(SocketAddr::from(([127, 0, 0, 1], port)))?;
        Ok(Cold { ready, first_byte: (first - begin).as_secs_f64() })
    });
    // It never ends by itself.
    child.kill().ok();
    child.wait()?;
    seen
}

/// Runs a command to its end; what it prints does not matter.
fn done(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    // A daemon that it leaves behind must not keep a pipe of this process open, so standard error is passed on as it is.
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {name}"))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// Waits for `Forwarding from 127.0.0.1:PORT -> 8080`.
fn forwarded(child: &mut Child) -> Result<u16> {
    let stdout = child.stdout.take().context("no output")?;
    let (say, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody listens any more once the port is known; kubectl still wants its lines read.
            say.send(line).ok();
        }
    });
    loop {
        let Ok(line) = hear.recv_timeout(PATIENCE) else { bail!("kubectl port-forward does not listen") };
        if let Some(port) = port(&line) {
            return Ok(port);
        }
    }
}

fn port(line: &str) -> Option<u16> {
    line.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next()?.parse().ok()
}

/// When the first byte of the page came.
fn first_byte(address: SocketAddr) -> Result<Instant> {
    let mut stream = super::connect(address)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web-app.emojivoto\r\nConnection: close\r\n\r\n")?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("no first byte")?;
    let first = Instant::now();
    // The rest belongs to an orderly end.
    stream.read_to_end(&mut Vec::new()).context("no end")?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::port;

    #[test]
    fn the_port_is_what_kubectl_says() {
        assert_eq!(port("Forwarding from 127.0.0.1:39057 -> 8080"), Some(39057));
        assert_eq!(port("Forwarding from [::1]:39057 -> 8080"), None);
        assert_eq!(port("Handling connection for 39057"), None);
    }
}
