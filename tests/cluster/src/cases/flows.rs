//! `tpx flows`: the counts are those of the transfer, and the process is the application.

use std::{
    collections::HashSet,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Case;
use crate::{
    cluster,
    laptop::{self, at},
    process::{eventually, run, sh},
};

pub(super) const CASES: &[Case] =
    &[("flows::counts_agree_with_a_transfer", counts), ("flows::short_ones_have_their_process", short)];

const BYTES: u64 = 200_000_000;

fn flows(options: &str) -> Result<Vec<Value>> {
    let said = sh(&format!("tpx flows {options} --format json"))?.success()?;
    let document: Value = serde_json::from_str(&said).with_context(|| format!("tpx flows said {said}"))?;
    Ok(document["flows"].as_array().context("no flows")?.clone())
}

fn counts() -> Result<()> {
    laptop::connect()?;
    // Slow enough to be seen under way; what was transferred is what curl itself counted.
    let url = format!("http://web-app.emojivoto/bytes?n={BYTES}");
    let format = "%{size_download} %{size_header} %{size_request} %{local_port}";
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "80", "--limit-rate", "40M", "-o", "/dev/null", "-w", format, &url]);
    let transfer = std::thread::spawn(move || run(&mut command));
    let under_way = eventually(Duration::from_secs(5), || {
        let curl = flows("")?.into_iter().find(|row| row["process"]["name"] == "curl");
        let row = curl.context("curl's flow is not listed")?;
        ensure!(row["bytes_down"].as_u64().is_some_and(|down| down > 1_000_000), "{row}");
        Ok(row)
    });
    let said = transfer.join().ok().context("panicked")??.success()?;
    let under_way = under_way?;
    ensure!(under_way["bytes_down"].as_u64() < Some(BYTES) && under_way["ended_seconds_ago"].is_null(), "{under_way}");
    ensure!(under_way["service"] == "web-app.emojivoto", "{under_way}");
    let road = if laptop::is_tun() { "floor" } else { "express" };
    ensure!(under_way["road"] == road, "{under_way}");

    let numbers: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [body, head, request, port] = numbers[..] else { anyhow::bail!("curl said {said}") };
    ensure!(body == BYTES, "curl said {said}");
    let row = eventually(Duration::from_secs(5), || {
        let source = |row: &Value| row["source"].as_str().is_some_and(|at| at.ends_with(&format!(":{port}")));
        let ended = |row: &Value| !row["ended_seconds_ago"].is_null();
        flows("--ended")?.into_iter().find(|row| source(row) && ended(row)).context("it is not listed as ended")
    })?;
    let (up, down) = (row["bytes_up"].as_u64().context("no count")?, row["bytes_down"].as_u64().context("no count")?);
    println!("curl: {} down, {request} up; tpx flows: {down} down, {up} up", body + head);
    ensure!(down.abs_diff(body + head) <= BYTES / 1000 && up == request, "{row}, curl said {said}");
    ensure!(row["process"] == under_way["process"], "{row}");
    ensure!(!flows("")?.iter().any(|other| other["number"] == row["number"]), "it is still listed as open");
    Ok(())
}

/// Short flows that `tpx flows --ended` has to know: fewer than it remembers.
const SHORT: usize = 200;

/// Each ends long before anybody could look for its process.
fn short() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let numbers = |rows: &[Value]| rows.iter().filter_map(|row| row["number"].as_u64()).collect::<HashSet<_>>();
    let before = numbers(&flows("--ended")?);
    // Under a name that nothing else has.
    let copy = std::env::temp_dir().join("short-lived");
    std::fs::copy(sh("command -v tpx-probe")?.success()?.trim(), &copy)?;
    let mut program = Command::new(&copy);
    program.args([at(service.v4, 80).to_string(), format!("--before={}", SHORT - 1)]);
    let program = program.stdout(Stdio::null()).spawn()?;
    let pid = program.id();
    let ended = program.wait_with_output();
    std::fs::remove_file(&copy)?;
    ensure!(ended?.status.success(), "the probe failed");
    let new = eventually(Duration::from_secs(10), || {
        let ours = |row: &Value| row["protocol"] == "tcp" && row["service"] == "web-app.emojivoto";
        let ended: Vec<Value> =
            flows("--ended")?.into_iter().filter(|row| !row["ended_seconds_ago"].is_null()).collect();
        let new: Vec<Value> = ended
            .into_iter()
            .filter(|row| ours(row) && row["number"].as_u64().is_some_and(|number| !before.contains(&number)))
            .collect();
        ensure!(new.len() == SHORT, "{} flows have ended", new.len());
        Ok(new)
    })?;
    let is_its = |row: &&Value| row["process"]["name"] == "short-lived" && row["process"]["pid"] == pid;
    let named = new.iter().filter(is_its).count();
    println!("{named} of {SHORT} short flows have their process");
    // Where no program of tpx's sees connect(), some are over before they are looked at.
    ensure!(named == SHORT || laptop::is_tun(), "{:?}", new.iter().find(|row| !is_its(row)));
    Ok(())
}
