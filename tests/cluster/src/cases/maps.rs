//! `tpx maps dump` shows what the kernel holds, and agrees with bpftool.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Case;
use crate::{cluster, laptop, laptop::at, process::sh};

pub(super) const CASES: &[Case] =
    &[("maps::dump_agrees_with_bpftool", agrees), ("maps::dump_as_a_table", table), ("maps::counters_move", counters)];

fn dump() -> Result<Value> {
    Ok(serde_json::from_str(&sh("tpx maps dump --format json")?.success()?)?)
}

/// The bytes of bpftool's JSON: ["0x0a", ...].
fn bytes(value: &Value) -> Vec<u8> {
    let hex = |v: &Value| u8::from_str_radix(v.as_str()?.trim_start_matches("0x"), 16).ok();
    value.as_array().into_iter().flatten().filter_map(hex).collect()
}

fn bpftool(map: &str) -> Result<Vec<Value>> {
    let text = sh(&format!("bpftool -j map dump name {map}"))?.success()?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("bpftool said {text}"))?;
    // One map with this name is a list of entries; where others have the same name, or there is no type information, each
    // map is an object with `elements`.
    let maps = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    Ok(maps
        .into_iter()
        .flat_map(|item| match item.get("elements") {
            Some(elements) => elements.as_array().cloned().unwrap_or_default(),
            None => vec![item],
        })
        .collect())
}

fn agrees() -> Result<()> {
    laptop::connect()?;
    let ours = dump()?;
    let mut theirs: Vec<(String, String)> = Vec::new();
    for entry in bpftool("RULES4")? {
        let key = bytes(&entry["key"]);
        ensure!(key.len() == 8, "{entry}");
        theirs.push((format!("{}.{}.{}.{}/{}", key[4], key[5], key[6], key[7], key[0]), action(&entry)?));
    }
    for entry in bpftool("RULES6")? {
        let key = bytes(&entry["key"]);
        ensure!(key.len() == 20, "{entry}");
        let address: [u8; 16] = key[4..].try_into()?;
        theirs.push((format!("{}/{}", std::net::Ipv6Addr::from(address), key[0]), action(&entry)?));
    }
    let mut shown: Vec<(String, String)> = ours["rules"]
        .as_array()
        .context("no rules")?
        .iter()
        .map(|row| (row["cidr"].as_str().unwrap_or("").to_owned(), row["action"].as_str().unwrap_or("").to_owned()))
        .collect();
    theirs.sort();
    shown.sort();
    ensure!(shown == theirs && shown.len() >= 4, "tpx: {shown:?}, bpftool: {theirs:?}");
    let names = bpftool("NAMES4")?.len();
    ensure!(ours["name_servers"].as_array().is_some_and(|rows| rows.len() >= names && names == 1), "{ours}");
    Ok(())
}

fn action(entry: &Value) -> Result<String> {
    let value: [u8; 4] = bytes(&entry["value"]).as_slice().try_into().with_context(|| entry.to_string())?;
    Ok(match u32::from_ne_bytes(value) {
        1 => "steer",
        2 => "except",
        3 => "virtual",
        4 => "hidden",
        _ => "unknown",
    }
    .into())
}

fn table() -> Result<()> {
    laptop::connect()?;
    let text = sh("tpx maps dump")?.success()?;
    for wanted in ["RULE", "NAME SERVER", "HELD FROM", "COUNTER", "steer", "10.96.0.0/16", "steered"] {
        ensure!(text.contains(wanted), "{wanted} is missing:\n{text}");
    }
    Ok(())
}

fn counters() -> Result<()> {
    laptop::connect()?;
    let value = |name: &str| -> Result<u64> {
        let maps = dump()?;
        let rows = maps["counters"].as_array().cloned().unwrap_or_default();
        rows.iter().find(|row| row["name"] == name).and_then(|row| row["value"].as_u64()).context("no such counter")
    };
    let before = (value("steered")?, value("syns_held")?);
    let pod = cluster::pod("default", "app=echo")?;
    for _ in 0..10 {
        ensure!(laptop::probe(at(pod.v4, 7), &[])?.connected);
    }
    let after = (value("steered")?, value("syns_held")?);
    ensure!(after.0 >= before.0 + 10 && after.1 >= before.1 + 10, "{before:?} -> {after:?}");
    Ok(())
}
