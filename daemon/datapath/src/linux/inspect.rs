//! Reading the kernel's maps through the files that were handed over; needs no privilege (kernel 5.19).

use std::{io, net::IpAddr, os::fd::OwnedFd};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use ipnet::IpNet;
use tpx_ebpf_abi::{Action, Counter, Flow, Rule, Target, Verdict};

use super::{ExpressFiles, Translations, translations::present};
use crate::maps::{CounterRow, DatagramRow, HeldRow, MapsDump, NameServerRow, RuleRow, VirtualRow};

/// Copies of a datapath's map files, to look at.
pub struct Maps {
    rules4: LpmTrie<MapData, [u8; 4], Rule>,
    rules6: LpmTrie<MapData, [u8; 16], Rule>,
    deny4: LpmTrie<MapData, [u8; 4], u32>,
    deny6: LpmTrie<MapData, [u8; 16], u32>,
    deny_ports: HashMap<MapData, u16, u8>,
    names4: HashMap<MapData, [u8; 4], [u8; 4]>,
    names6: HashMap<MapData, [u8; 16], [u8; 16]>,
    translations: Translations,
    targets: HashMap<MapData, u32, Target>,
    held: HashMap<MapData, Flow, Verdict>,
    bypass: HashMap<MapData, u64, u8>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Copies the map files of an express lane.
    ///
    /// # Errors
    /// When a file is no such map, or no file can be opened any more.
    pub fn of(files: &ExpressFiles) -> io::Result<Self> {
        Ok(Self {
            rules4: open(&files.rules4)?.try_into().map_err(other)?,
            rules6: open(&files.rules6)?.try_into().map_err(other)?,
            deny4: open(&files.deny4)?.try_into().map_err(other)?,
            deny6: open(&files.deny6)?.try_into().map_err(other)?,
            deny_ports: open(&files.deny_ports)?.try_into().map_err(other)?,
            names4: open(&files.names4)?.try_into().map_err(other)?,
            names6: open(&files.names6)?.try_into().map_err(other)?,
            translations: Translations::of(files)?,
            targets: open(&files.targets)?.try_into().map_err(other)?,
            held: open(&files.held)?.try_into().map_err(other)?,
            bypass: open(&files.bypass)?.try_into().map_err(other)?,
            counters: open(&files.counters)?.try_into().map_err(other)?,
        })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dump(&self) -> io::Result<MapsDump> {
        Ok(MapsDump {
            rules: self.rules()?,
            denied_ports: self.denied_ports()?,
            name_servers: self.name_servers()?,
            translations: self.translations()?,
            datagrams: self.datagrams()?,
            held: self.held()?,
            bypassed_sockets: self.bypass.keys().filter(Result::is_ok).count() as u64,
            counters: self.counters()?,
        })
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
        for key in self.deny4.keys() {
            let key = key.map_err(other)?;
            denied(key.data().into(), key.prefix_len())?;
        }
        for key in self.deny6.keys() {
            let key = key.map_err(other)?;
            denied(key.data().into(), key.prefix_len())?;
        }
        rows.sort_by_key(|row| row.cidr);
        Ok(rows)
    }

    fn denied_ports(&self) -> io::Result<Vec<u16>> {
        let mut ports = self.deny_ports.keys().collect::<Result<Vec<_>, _>>().map_err(other)?;
        ports.sort_unstable();
        Ok(ports)
    }

    fn name_servers(&self) -> io::Result<Vec<NameServerRow>> {
        let mut rows = Vec::new();
        for entry in self.names4.iter() {
            let (server, own) = entry.map_err(other)?;
            rows.push(NameServerRow { name_server: server.into(), answered_at: own.into() });
        }
        for entry in self.names6.iter() {
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

    fn translations(&self) -> io::Result<Vec<VirtualRow>> {
        let all = self.translations.all()?;
        Ok(all.into_iter().map(|(virtual_ip, real)| VirtualRow { virtual_ip, real }).collect())
    }

    fn datagrams(&self) -> io::Result<Vec<DatagramRow>> {
        let mut rows = Vec::new();
        for entry in self.targets.iter() {
            let row = present(entry)?.map(|(index, target)| DatagramRow { index, destination: target.address() });
            rows.extend(row);
        }
        rows.sort_by_key(|row| row.index);
        Ok(rows)
    }

    fn held(&self) -> io::Result<Vec<HeldRow>> {
        let mut rows = Vec::new();
        for entry in self.held.iter() {
            rows.extend(present(entry)?.map(|(flow, verdict)| HeldRow {
                source: flow.source(),
                destination: flow.destination(),
                state: if verdict.pass == 0 { "held" } else { "released" }.into(),
                syns: verdict.syns,
            }));
        }
        rows.sort_by_key(|row| (row.destination, row.source));
        Ok(rows)
    }

    /// What the programs counted since they were loaded.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn counters(&self) -> io::Result<Vec<CounterRow>> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let per_cpu = self.counters.get(&(*counter as u32), 0).map_err(other)?;
                Ok(CounterRow { name: counter.name().into(), value: per_cpu.iter().sum() })
            })
            .collect()
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

fn open(file: &OwnedFd) -> io::Result<Map> {
    Map::from_map_data(MapData::from_fd(file.try_clone()?).map_err(other)?).map_err(other)
}

fn other(e: MapError) -> io::Error {
    io::Error::other(e)
}
