//! What a test may leave behind, and must not.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use tpx_ebpf_abi::slot::Slot;

/// A snapshot of the namespace and this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residue {
    /// Names of devices.
    pub links: BTreeSet<String>,
    /// Policy rules.
    pub rules: Vec<String>,
    /// Routes in tpx's tables.
    pub routes: Vec<String>,
    /// Ids of programs that use a map of ours.
    pub programs: BTreeSet<u32>,
    /// What the open files of this process are.
    pub files: Vec<String>,
    /// Cgroups.
    pub cgroups: BTreeSet<PathBuf>,
    /// Processes that this one started.
    pub children: usize,
}

impl Residue {
    pub(crate) async fn now(maps: &BTreeSet<u32>, tree: &Path) -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let (mut rules, mut routes) = (Vec::new(), Vec::new());
        for version in [IpVersion::V4, IpVersion::V6] {
            let found: Vec<_> = handle.rule().get(version.clone()).execute().try_collect().await?;
            rules.extend(found.iter().map(|rule| format!("{rule:?}")));
            let any = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let found: Vec<_> = handle.route().get(any).execute().try_collect().await?;
            routes.extend(found.iter().filter(|r| is_ours(r)).map(|route| format!("{route:?}")));
        }
        drop(handle);
        connection.abort();
        let _ = connection.await;
        Ok(Self {
            links: links()?,
            rules,
            routes,
            programs: programs(maps),
            files: files()?,
            cgroups: cgroups(tree)?,
            children: children()?,
        })
    }
}

fn files() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // The directory that is being read is gone by now.
        if let Ok(target) = fs::read_link(entry?.path()) {
            let target = target.to_string_lossy();
            files.push(target.split_once(":[").map_or(&*target, |(kind, _)| kind).to_owned());
        }
    }
    files.sort();
    Ok(files)
}

fn cgroups(tree: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::from([tree.to_owned()]);
    let mut next = vec![tree.to_owned()];
    while let Some(group) = next.pop() {
        for entry in fs::read_dir(&group)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.insert(entry.path());
                next.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn links() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/net/dev").context("read the devices")?;
    Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}

fn is_ours(route: &RouteMessage) -> bool {
    let table = route.attributes.iter().find_map(|a| if let RouteAttribute::Table(t) = a { Some(*t) } else { None });
    table.is_some_and(Slot::owns_table)
}

/// Other programs of the machine come and go; ours use one of `maps`.
fn programs(maps: &BTreeSet<u32>) -> BTreeSet<u32> {
    aya::programs::loaded_programs()
        .flatten()
        .filter(|p| p.map_ids().ok().flatten().is_some_and(|used| used.iter().any(|id| maps.contains(id))))
        .map(|p| p.id())
        .collect()
}

fn children() -> Result<usize> {
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task")? {
        count += fs::read_to_string(task?.path().join("children"))?.split_whitespace().count();
    }
    Ok(count)
}
