//! Telling systemd-resolved (org.freedesktop.resolve1(5)) about the device: programs whose nsswitch.conf asks it never
//! send to port 53 themselves. It forgets what it was told together with the device.
//!
//! All of it is help, none of it a condition: a host without it, or without D-Bus, goes on without.

use std::{fs, net::IpAddr, time::Duration};

use tokio::time::{sleep, timeout};
use tpx_core::plan::ResolverLink;
use zbus::{Connection, connection::Builder, fdo, names::BusName, zvariant::DynamicType};

use super::device::Device;

/// Whom to ask, and where.
const SERVICE: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// It hears of a new device a little later than this process.
const RETRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// Every version takes so many domains of a link.
const FEW: usize = 32;

/// What systemd-resolved was told.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// The bus, where it is not the system's usual one.
    bus: Option<String>,
    told: Option<ResolverLink>,
}

/// Why it was not told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error("there is no D-Bus: {0}")]
    NoBus(#[source] zbus::Error),
    #[error("systemd-resolved does not run")]
    NotRunning,
    #[error("the one that runs serves another network namespace")]
    Elsewhere,
    #[error("it said: {0}")]
    Call(#[from] zbus::Error),
    #[error("it did not answer in time")]
    Late,
}

impl Resolved {
    /// With another bus than the system's.
    pub(super) fn at(bus: Option<String>) -> Self {
        Self { bus, told: None }
    }

    /// Whether it knows what it should.
    pub(super) fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Tells it what is new. `None`: it should forget everything.
    pub(super) async fn tell(&mut self, device: &Device, link: Option<&ResolverLink>, ipv6: bool) {
        if self.told.as_ref() == link {
            return;
        }
        let told = async {
            let connection = self.connect(device).await?;
            let told = match link {
                Some(link) => set(&connection, device.index, link, ipv6).await,
                None => call(&connection, "RevertLink", &index(device.index)).await,
            };
            // What it remembers may be wrong now.
            let told = match told {
                Ok(()) => call(&connection, "FlushCaches", &()).await,
                failed => failed,
            };
            let _ = connection.close().await;
            told
        };
        match told.await {
            Ok(()) => self.told = link.cloned(),
            Err(e) => {
                self.told = None;
                tracing::info!("systemd-resolved was not told: {e}");
            }
        }
    }

    async fn connect(&self, device: &Device) -> Result<Connection, Untold> {
        let builder = match &self.bus {
            Some(address) => Builder::address(address.as_str()),
            None => Builder::system(),
        };
        let connecting = builder.method_timeout(PATIENCE).build();
        let connection = timeout(PATIENCE, connecting).await.map_err(|_| Untold::Late)?.map_err(Untold::NoBus)?;
        match serves(&connection, device.name).await {
            Ok(()) => Ok(connection),
            Err(e) => {
                let _ = connection.close().await;
                Err(e)
            }
        }
    }
}

/// Whether it runs, without starting it, and knows the devices of this network namespace.
async fn serves(connection: &Connection, device: &str) -> Result<(), Untold> {
    let process = connection
        .call_method(
            Some("org.freedesktop.DBus"),
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "GetConnectionUnixProcessID",
            &BusName::try_from(SERVICE)?,
        )
        .await;
    let process: u32 = match process {
        Ok(answer) => answer.body().deserialize()?,
        Err(zbus::Error::FDO(e)) if matches!(*e, fdo::Error::NameHasNoOwner(_)) => return Err(Untold::NotRunning),
        Err(e) => return Err(e.into()),
    };
    // A process that may not be looked at (hidepid of proc(5)) gets the benefit of the doubt.
    match fs::read_to_string(format!("/proc/{process}/net/dev")) {
        Ok(devices) if !has_device(&devices, device) => Err(Untold::Elsewhere),
        _ => Ok(()),
    }
}

/// Whether a `/proc/PID/net/dev` lists a device.
fn has_device(table: &str, device: &str) -> bool {
    table.lines().any(|line| line.split_once(':').is_some_and(|(name, _)| name.trim() == device))
}

async fn set(connection: &Connection, device: u32, link: &ResolverLink, ipv6: bool) -> Result<(), Untold> {
    let device = index(device);
    let servers: Vec<(i32, Vec<u8>)> =
        link.servers.iter().filter(|ip| ip.is_ipv4() || ipv6).map(|ip| family_and_bytes(*ip)).collect();
    let mut attempts = 0;
    loop {
        attempts += 1;
        match call(connection, "SetLinkDNS", &(device, servers.clone())).await {
            Err(Untold::Call(zbus::Error::MethodError(name, ..)))
                if name == "org.freedesktop.resolve1.NoSuchLink" && attempts < RETRIES =>
            {
                sleep(PAUSE).await;
            }
            other => break other?,
        }
    }
    tell_domains(connection, device, &domains(link)).await?;
    // Everything else stays with the servers that it has.
    call(connection, "SetLinkDefaultRoute", &(device, false)).await?;
    // Nobody but tpx is on this link: no multicast, and no signatures or encryption where the tunnel is the protection.
    for method in ["SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSOverTLS", "SetLinkDNSSEC"] {
        if let Err(e) = call(connection, method, &(device, "no")).await {
            tracing::debug!("{method}: {e}");
        }
    }
    Ok(())
}

/// Tells it as many domains as it takes, which depends on its version: a cluster may have more namespaces. What matters most
/// comes first; the names of the others are answered to those who ask port 53 themselves.
async fn tell_domains(connection: &Connection, device: i32, domains: &[(&str, bool)]) -> Result<(), Untold> {
    let mut count = domains.len();
    loop {
        match call(connection, "SetLinkDomains", &(device, domains.get(..count).unwrap_or(domains))).await {
            Err(Untold::Call(zbus::Error::MethodError(..))) if count > FEW => count /= 2,
            told => {
                if told.is_ok() && count < domains.len() {
                    tracing::info!("systemd-resolved has room for {count} of {} domains", domains.len());
                }
                return told;
            }
        }
    }
}

async fn call<B>(connection: &Connection, method: &str, body: &B) -> Result<(), Untold>
where
    B: serde::Serialize + DynamicType,
{
    connection.call_method(Some(SERVICE), PATH, Some(MANAGER), method, body).await?;
    Ok(())
}

/// D-Bus has it signed; the kernel never gets that far.
fn index(device: u32) -> i32 {
    i32::try_from(device).unwrap_or(i32::MAX)
}

fn family_and_bytes(ip: IpAddr) -> (i32, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    }
}

/// Each with whether it only routes. One that is in both lists completes single labels as well.
fn domains(link: &ResolverLink) -> Vec<(&str, bool)> {
    let plain = |domain: &'_ String| -> String { domain.trim_matches('.').to_ascii_lowercase() };
    let searched: Vec<String> = link.search_domains.iter().map(plain).collect();
    let search = link.search_domains.iter().map(|domain| (domain.trim_matches('.'), false));
    let routing = link.routing_domains.iter().filter(|domain| !searched.contains(&plain(domain)));
    search.chain(routing.map(|domain| (domain.trim_matches('.'), true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_told_once() {
        let link = ResolverLink {
            servers: vec![],
            routing_domains: vec!["cluster.local.".into(), "SVC".into(), "emojivoto".into()],
            search_domains: vec!["svc".into()],
        };
        assert_eq!(domains(&link), [("svc", false), ("cluster.local", true), ("emojivoto", true)]);
    }

    #[test]
    fn devices_of_a_namespace() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  tpx0:0 0\n";
        assert!(has_device(table, "tpx0") && has_device(table, "lo"));
        assert!(!has_device(table, "tpx1") && !has_device("", "tpx0") && !has_device(table, "tpx"));
    }

    #[test]
    fn addresses_travel_as_bytes() {
        assert_eq!(family_and_bytes("246.246.255.200".parse().unwrap()), (2, vec![246, 246, 255, 200]));
        assert_eq!(family_and_bytes("::1".parse().unwrap()).1.len(), 16);
    }
}
