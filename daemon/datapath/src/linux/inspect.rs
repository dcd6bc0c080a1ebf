//! Reading the kernel's maps through the files that were handed over; needs no privilege (kernel 5.19).

use std::{io, os::fd::OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use tpx_ebpf_abi::{Counter, Flow, Target, Verdict};

use super::{ExpressFiles, Translations, translations::present};
use crate::maps::{CounterRow, DatagramRow, HeldRow, MapsDump, VirtualRow};

/// Copies of a datapath's map files, to look at.
pub struct Maps {
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
            translations: Translations::of(files)?,
            targets: open(&files.targets)?.try_into().map_err(other)?,
            held: open(&files.held)?.try_into().map_err(other)?,
            bypass: open(&files.bypass)?.try_into().map_err(other)?,
            counters: open(&files.counters)?.try_into().map_err(other)?,
        })
    }

    /// Reads everything but the [`Tables`](crate::Tables), which the privileged daemon reads.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dump(&self) -> io::Result<MapsDump> {
        Ok(MapsDump {
            translations: self.translations()?,
            datagrams: self.datagrams()?,
            held: self.held()?,
            bypassed_sockets: self.bypass.keys().filter(Result::is_ok).count() as u64,
            counters: self.counters()?,
            ..MapsDump::default()
        })
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

fn open(file: &OwnedFd) -> io::Result<Map> {
    Map::from_map_data(MapData::from_fd(file.try_clone()?).map_err(other)?).map_err(other)
}

fn other(e: MapError) -> io::Error {
    io::Error::other(e)
}
