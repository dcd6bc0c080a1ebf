//! The load client: makes one kind of traffic to one address and prints what it saw as a line of JSON.
//!
//! Plain blocking sockets: on the machine where it is measured, the client must not be what is measured.

mod ask;
mod bulk;
mod cold;
mod connects;
mod hold;
mod ping;
mod stream;

use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Nothing takes longer on a road that works.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(name = "tpx-load", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download /bytes again and again over one connection
    Down(BulkArgs),
    /// Upload to /sink again and again over one connection
    Up(BulkArgs),
    /// Read from a server that sends endlessly
    Take(BulkArgs),
    /// Write to a server that takes everything
    Give(BulkArgs),
    /// 64 bytes there and back
    Ping {
        /// An echo
        address: SocketAddr,
        /// How many are timed
        #[arg(long, default_value_t = 2000)]
        count: usize,
        /// And at most for how long, in seconds
        #[arg(long, default_value_t = 15.0)]
        seconds: f64,
        /// Download from this web server at the same time
        #[arg(long, value_name = "ADDRESS")]
        beside: Option<SocketAddr>,
    },
    /// Connect, send a byte, read it back, close
    Connects {
        /// An echo
        address: SocketAddr,
        /// How many at a time
        #[arg(long, default_value_t = 1)]
        at_once: usize,
        /// For how long, in seconds
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// And at most how many
        #[arg(long, default_value_t = 2000)]
        most: usize,
    },
    /// Ask for a name's IPv4 address by UDP
    Dns {
        /// The name
        name: String,
        /// Whom to ask, instead of the first name server of /etc/resolv.conf
        #[arg(long)]
        server: Option<SocketAddr>,
        #[command(flatten)]
        amount: ask::Amount,
    },
    /// Datagrams there and back
    Datagrams {
        /// An echo
        address: SocketAddr,
        /// Bytes of each
        #[arg(long, default_value_t = 1200)]
        size: usize,
        #[command(flatten)]
        amount: ask::Amount,
    },
    /// Open flows, say so, and keep them until ended
    Hold {
        /// Echoes; the flows are spread over them
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
        /// TCP connections
        #[arg(long, default_value_t = 0)]
        connections: usize,
        /// UDP associations
        #[arg(long, default_value_t = 0)]
        associations: usize,
    },
    /// What connect() itself costs, of a datagram socket
    Touch {
        /// To where
        address: SocketAddr,
        /// For how long, in seconds
        #[arg(long, default_value_t = 0.5)]
        seconds: f64,
    },
    /// From nothing to the first byte of http://web-app.emojivoto/
    #[command(subcommand)]
    Cold(cold::Road),
}

#[derive(clap::Args)]
struct BulkArgs {
    /// The server
    address: SocketAddr,
    /// For how long, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Down(BulkArgs { address, seconds }) => print(&bulk::down(address, seconds)?),
        Command::Up(BulkArgs { address, seconds }) => print(&bulk::up(address, seconds)?),
        Command::Take(BulkArgs { address, seconds }) => print(&stream::take(address, seconds)?),
        Command::Give(BulkArgs { address, seconds }) => print(&stream::give(address, seconds)?),
        Command::Dns { name, server, amount } => print(&ask::dns(server, &name, amount)?),
        Command::Datagrams { address, size, amount } => print(&ask::echo(address, size, amount)?),
        Command::Ping { address, count, seconds, beside: None } => print(&ping::run(address, count, seconds)?),
        Command::Ping { address, count, seconds, beside: Some(web) } => {
            print(&ping::run_beside(address, count, seconds, web)?)
        }
        Command::Connects { address, at_once, seconds, most } => {
            print(&connects::run(address, at_once, seconds, most)?)
        }
        Command::Hold { addresses, connections, associations } => hold::run(&addresses, connections, associations),
        Command::Touch { address, seconds } => print(&hold::touch(address, seconds)?),
        Command::Cold(road) => print(&cold::run(&road)?),
    }
}

fn print(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}

/// A connection on which nothing waits for ever and nothing small waits for more.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
