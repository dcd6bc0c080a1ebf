//! The rest of the world: a name server that writes down every question, a web server and an echo.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{dns, echo, web};

/// What it answers, and where.
pub(crate) struct Options {
    dns: SocketAddr,
    web: IpAddr,
    web6: IpAddr,
    log: PathBuf,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Options> {
        let value = |name: &str| {
            arguments
                .iter()
                .skip_while(|argument| *argument != name)
                .nth(1)
                .with_context(|| format!("{name} is missing"))
        };
        if arguments.len() != 8 {
            bail!(crate::USAGE);
        }
        Ok(Options {
            dns: value("--dns")?.parse()?,
            web: value("--web")?.parse()?,
            web6: value("--web6")?.parse()?,
            log: value("--log")?.into(),
        })
    }
}

/// Serves until stopped.
pub(crate) async fn serve(options: &Options) -> Result<()> {
    let zone = dns::Zone::new(options.web, options.web6, &options.log)?;
    tokio::try_join!(
        dns::udp(options.dns, &zone),
        dns::tcp(options.dns, &zone),
        web::serve((options.web, 80).into(), "The Internet"),
        web::serve((options.web6, 80).into(), "The Internet"),
        echo::tcp((options.web, 7).into(), echo::echo),
        echo::tcp((options.web6, 7).into(), echo::echo),
        echo::udp((options.web, 7).into()),
        echo::udp((options.web6, 7).into()),
    )?;
    Ok(())
}
