//! Reading back what the privileged daemon has written into the programs' maps.

use std::{io, net::IpAddr};

use aya::maps::MapError;
use ipnet::IpNet;
use tpx_ebpf_abi::{Action, Rule};

use super::programs::Programs;
use crate::maps::{NameServerRow, RuleRow, Tables};

impl Programs {
    /// Reads all of it.
    pub(super) fn tables(&self) -> io::Result<Tables> {
        Ok(Tables { rules: self.rules()?, denied_ports: self.denied_ports()?, name_servers: self.name_servers()? })
    }

    fn rules(&self) -> io::Result<Vec<RuleRow>> {
        let mut rows = Vec::new();
        for entry in self.rules4.iter() {
            let (key, rule) = entry.map_err(other)?;
            rows.push(rule_row(key.data().into(), key.prefix_len(), rule)?);
        }
        for entry in self.rules6.iter() {
            let (key, rule) = entry.map_err(other)?;
            rows.push(rule_row(key.data().into(), key.prefix_len(), rule)?);
        }
        let mut denied = |ip: IpAddr, prefix: u32| -> io::Result<()> {
            rows.push(RuleRow { cidr: net(ip, prefix)?, action: "deny".into() });
            Ok(())
        };
        for key in self.denied.nets4.keys() {
            let key = key.map_err(other)?;
            denied(key.data().into(), key.prefix_len())?;
        }
        for key in self.denied.nets6.keys() {
            let key = key.map_err(other)?;
            denied(key.data().into(), key.prefix_len())?;
        }
        rows.sort_by_key(|row| row.cidr);
        Ok(rows)
    }

    fn denied_ports(&self) -> io::Result<Vec<u16>> {
        let mut ports = self.denied.ports.keys().collect::<Result<Vec<_>, _>>().map_err(other)?;
        ports.sort_unstable();
        Ok(ports)
    }

    fn name_servers(&self) -> io::Result<Vec<NameServerRow>> {
        let mut rows = Vec::new();
        for entry in self.names4.own.iter() {
            let (server, own) = entry.map_err(other)?;
            rows.push(NameServerRow { name_server: server.into(), answered_at: own.into() });
        }
        for entry in self.names6.own.iter() {
            let (server, own) = entry.map_err(other)?;
            let (server, own): (IpAddr, IpAddr) = (server.into(), own.into());
            // The IPv6 map may hold IPv4 servers once more, as applications with IPv6 sockets see them.
            if server.to_canonical().is_ipv6() {
                rows.push(NameServerRow { name_server: server, answered_at: own });
            }
        }
        rows.sort_by_key(|row| row.answered_at);
        Ok(rows)
    }
}

fn rule_row(ip: IpAddr, prefix: u32, rule: Rule) -> io::Result<RuleRow> {
    Ok(RuleRow {
        cidr: net(ip, prefix)?,
        action: match rule.action() {
            Some(Action::Steer) => "steer",
            Some(Action::Except) => "except",
            Some(Action::Virtual) => "virtual",
            Some(Action::Hidden) => "hidden",
            None => "unknown",
        }
        .into(),
    })
}

fn net(ip: IpAddr, prefix: u32) -> io::Result<IpNet> {
    let prefix = u8::try_from(prefix).map_err(io::Error::other)?;
    IpNet::new(ip, prefix).map_err(io::Error::other)
}

fn other(e: MapError) -> io::Error {
    io::Error::other(e)
}
