//! Every workload of the lab in one static program: a web page, an echo, a pause, and the rest of the world.

mod dial;
mod dns;
mod echo;
mod internet;
mod quic;
mod web;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: tpx-workload pause | web [PORT TITLE] | echo | dial ADDRESS MILLISECONDS | internet --dns IP:PORT --web IP --web6 IP --log FILE";

fn main() -> ExitCode {
    match start(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Vec<String>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (name, options) = arguments.split_first().context(USAGE)?;
    let part = async {
        match name.as_str() {
            "pause" => std::future::pending().await,
            "web" => match options {
                [] => web::serve(([0u16; 8], 8080).into(), "Emoji Vote").await,
                [port, title] => web::serve(([0u16; 8], port.parse()?).into(), title.clone().leak()).await,
                _ => bail!(USAGE),
            },
            "echo" => tokio::try_join!(echo::serve_all(), quic::serve(([0u16; 8], quic::PORT).into())).map(drop),
            "dial" => dial::dial(options),
            "internet" => internet::serve(&internet::Options::parse(options)?).await,
            _ => bail!(USAGE),
        }
    };
    runtime.block_on(async {
        // The first process of a container has no default handling of signals.
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        tokio::select! {
            result = part => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}
