//! `tpx connect --scope`: processes that were there before, and several connections at once.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Case, run::Waiting};
use crate::{
    cluster::kubectl,
    laptop,
    process::{Ended, eventually, run, sh},
    residue,
};

pub(super) const CASES: &[Case] = &[
    ("scopes::a_cgroup_a_unit_and_a_user", scopes),
    ("scopes::what_is_not_there", missing),
    ("scopes::several_connections_are_told_apart", several),
    ("scopes::one_workstation_at_a_time", workstation),
    ("scopes::two_clusters_at_once", two_clusters),
    ("scopes::a_name_of_the_workstations_cluster_alone", workstations_name),
];

const TITLE: &str = "<title>Emoji Vote</title>";
const ROOT: &str = "/sys/fs/cgroup";

/// A directory of the cgroup2 tree; goes when dropped, with those around it that were made for it.
struct Group(String);

impl Group {
    fn make(path: &str) -> Result<Self> {
        fs::create_dir_all(Path::new(ROOT).join(path))?;
        Ok(Self(path.to_owned()))
    }

    /// Runs a script in it.
    fn sh(&self, script: &str) -> Result<Ended> {
        sh(&format!("echo $$ >{ROOT}/{}/cgroup.procs && {script}", self.0))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = eventually(Duration::from_secs(2), || {
            for path in Path::new(&self.0).ancestors().filter(|path| !path.as_os_str().is_empty()) {
                fs::remove_dir(Path::new(ROOT).join(path))?;
            }
            Ok(())
        });
    }
}

fn scopes() -> Result<()> {
    laptop::quit()?;
    for (path, scope) in [
        ("tpx-test/deep", "cgroup:tpx-test/deep"),
        ("tpx-test.slice/db.service", "unit:db"),
        ("user.slice/user-1000.slice", "user:dev"),
    ] {
        let group = Group::make(path)?;
        let connect = ["connect", "-n", "emojivoto", "--name", "scoped", "--scope", scope];
        run(Command::new("tpx").args(connect))?.success().with_context(|| scope.to_owned())?;
        let page = group.sh("curl -sS -m 10 http://web-app")?.success().with_context(|| scope.to_owned())?;
        ensure!(page.contains(TITLE), "{page}");
        let child = group.sh("(setsid curl -sS -m 10 http://web-app.emojivoto)")?.success()?;
        ensure!(child.contains(TITLE), "{child}");
        let outside = sh("curl -sS -m 5 http://web-app.emojivoto")?;
        ensure!(outside.code() == 6, "{scope}: the name resolves outside: {outside:?}");
        let status = laptop::status()?.context("not connected")?;
        let wanted = format!("{ROOT}/{path}");
        ensure!(status["scope"]["kind"] == "cgroup" && status["scope"]["cgroup"] == wanted.as_str(), "{status}");
        sh("tpx quit")?.success()?;
        residue::nothing_left()?;
        ensure!(group.sh("curl -sS -m 5 http://web-app.emojivoto")?.code() == 6, "{scope}: after quit");
    }
    Ok(())
}

fn missing() -> Result<()> {
    laptop::quit()?;
    let _groups = [Group::make("tpx-test/a/twice.service")?, Group::make("tpx-test/b/twice.service")?];
    for (scope, words) in [
        ("cgroup:nowhere", &["no cgroup", "/nowhere"][..]),
        ("cgroup:/", &["root of the cgroup2 tree", "--scope workstation"]),
        ("cgroup:.", &["root of the cgroup2 tree", "--scope workstation"]),
        ("cgroup:/sys/fs/cgroup", &["root of the cgroup2 tree", "--scope workstation"]),
        ("cgroup:tpx-test/..", &["root of the cgroup2 tree", "--scope workstation"]),
        ("unit:nothing", &["no unit nothing runs", "nothing.service"]),
        ("unit:twice", &["could be any of", "a/twice.service", "b/twice.service", "cgroup:PATH"]),
        ("user:mallory", &["mallory runs nothing", "user-1001.slice"]),
        ("user:nobody-of-this-name", &["no user"]),
        ("pods", &["unit:NAME", "container:NAME"]),
        ("container:", &["container:NAME"]),
    ] {
        let ended = run(Command::new("tpx").args(["connect", "--scope", scope]))?;
        ensure!(ended.code() == 2, "{scope}: {ended:?}");
        for word in words {
            ensure!(ended.stderr.contains(word), "{scope}: {word:?} is not in {:?}", ended.stderr);
        }
    }
    residue::nothing_left()
}

fn several() -> Result<()> {
    laptop::quit()?;
    let one = Waiting::start(&["--name", "one"], "exit 1")?;
    let two = Waiting::start(&["--name", "two"], "exit 2")?;
    // Neither is the usual one.
    for command in ["list-namespaces", "flows", "quit", "explain 10.96.0.1"] {
        let ended = sh(&format!("tpx {command}"))?;
        ensure!(ended.code() == 2 && ended.stderr.lines().count() == 1, "{command}: {ended:?}");
        for word in ["one (process tree, context ", "two (process tree, context ", "--use"] {
            ensure!(ended.stderr.contains(word), "{command}: {word:?} is not in {:?}", ended.stderr);
        }
    }
    let listed = sh("tpx status")?.success()?;
    ensure!(listed.lines().count() == 3 && listed.contains("process tree"), "{listed}");
    for (used, name) in [("one", "one"), ("^t", "two")] {
        let status: Value = serde_json::from_str(&sh(&format!("tpx status --use '{used}' --format json"))?.success()?)?;
        ensure!(status["name"] == name, "{status}");
    }
    let none = sh("tpx status --use three")?;
    ensure!(
        none.code() == 3 && none.stderr.contains("no connection matches") && none.stderr.contains("one ("),
        "{none:?}"
    );
    let both = sh("tpx status --use '(one|two)'")?;
    ensure!(both.code() == 2 && both.stderr.contains("2 connections"), "{both:?}");
    ensure!(sh("tpx version")?.success()?.contains("several connections"));
    // A name can be taken once.
    let taken = sh("tpx run --name two -- true")?;
    ensure!(taken.code() == 4 && taken.stderr.contains("called two runs already"), "{taken:?}");
    // Beside a connection of the usual name, that one is meant.
    sh("tpx connect")?.success()?;
    ensure!(sh("tpx list-namespaces")?.success()?.contains("emojivoto"));
    let quit = sh("tpx quit")?.success()?;
    ensure!(quit.contains("Disconnected"), "{quit}");
    ensure!(one.finish()? == 1);
    // Now it is the only one.
    let status = laptop::status()?.context("two has gone")?;
    ensure!(status["name"] == "two", "{status}");
    sh("tpx connect")?.success()?;
    let all = sh("tpx quit --all")?.success()?;
    ensure!(all.contains("default") && all.contains("two"), "{all}");
    ensure!(two.finish()? == 2);
    residue::nothing_left()
}

fn workstation() -> Result<()> {
    laptop::quit()?;
    laptop::connect()?;
    let second = sh("tpx connect --name other")?;
    let last = second.stderr.lines().last().unwrap_or_default();
    ensure!(second.code() == 4 && last.contains("already connected") && last.contains("default"), "{second:?}");
    ensure!(last.contains("tpx quit") && last.contains("tpx run"), "{last}");
    laptop::quit()?;
    residue::nothing_left()
}

/// The page that says on whose node it was made.
const WHERE: &str = "http://web-app.emojivoto/where";

/// Both clusters have the same subnets, the same services, and their name server at the same address.
fn two_clusters() -> Result<()> {
    laptop::quit()?;
    let before = laptop::network_state()?;
    sh("tpx manager install --context second")?.success()?;
    let address = |context: &str| -> Result<String> {
        let service = kubectl(&["--context", context, "-n", "emojivoto", "get", "service", "web-app"])?;
        Ok(service["spec"]["clusterIP"].as_str().context("web-app has no address")?.to_owned())
    };
    let script =
        format!("curl -sS -m 10 {WHERE}; echo; dig +short +time=5 @10.96.0.10 web-app.emojivoto.svc.cluster.local");
    let start = |context: &str| Waiting::start(&["--context", context, "--name", &format!("in-{context}")], &script);
    let says = |mut waiting: Waiting, node: &str, address: &str| -> Result<()> {
        waiting.go_on()?;
        let (page, answer) = (waiting.line()?, waiting.line()?);
        ensure!(page.contains(&format!("\"{node}\"")), "not on {node}: {page}");
        ensure!(answer == address, "the name server at 10.96.0.10 is not {node}'s: {answer}");
        Ok(())
    };
    let contexts = [("lab", "node1", address("lab")?), ("second", "node2", address("second")?)];
    let outside = |node: Option<&str>| -> Result<()> {
        let ended = sh(&format!("curl -sS -m 10 {WHERE}"))?;
        match node {
            Some(node) => ensure!(ended.stdout.contains(&format!("\"{node}\"")), "not {node}'s outside: {ended:?}"),
            None => ensure!(ended.code() == 6, "the name resolves outside: {ended:?}"),
        }
        Ok(())
    };
    // Nobody outside, then the workstation in either of them.
    for workstation in [None, Some(("lab", "node1")), Some(("second", "node2"))] {
        if let Some((context, _)) = workstation {
            run(Command::new("tpx").args(["connect", "--context", context]))?.success()?;
        }
        let trees = contexts.iter().map(|(context, ..)| start(context)).collect::<Result<Vec<_>>>()?;
        outside(workstation.map(|(_, node)| node))?;
        for (tree, (_, node, address)) in trees.into_iter().zip(&contexts) {
            says(tree, node, address)?;
        }
        outside(workstation.map(|(_, node)| node))?;
        laptop::quit()?;
        residue::nothing_left()?;
    }
    let after = laptop::network_state()?;
    ensure!(before == after, "the network is not as before:\n{before}\n---\n{after}");
    Ok(())
}

/// A name that only the workstation's cluster has is nobody's in a scope that sees the other cluster: what that one lacks is
/// asked of the laptop's own name server, not of the workstation's.
fn workstations_name() -> Result<()> {
    laptop::quit()?;
    sh("tpx manager install --context second")?.success()?;
    run(Command::new("tpx").args(["connect", "--context", "lab"]))?.success()?;
    sh("kubectl --context lab create namespace only-lab")?.success()?;
    let result = (|| {
        sh("kubectl --context lab -n only-lab create service clusterip only --tcp=80:80")?.success()?;
        eventually(Duration::from_secs(20), || sh("getent ahostsv4 only.only-lab")?.success().map(drop))?;
        for ask in ["getent ahostsv4 only.only-lab", "dig +tcp +short +time=5 only.only-lab"] {
            let inside = run(Command::new("tpx").args(["run", "-q", "--context", "second", "--", "sh", "-c", ask]))?;
            ensure!(inside.stdout.trim().is_empty(), "the workstation's cluster answers inside: {ask}: {inside:?}");
        }
        let inside = ["run", "-q", "--context", "second", "--", "curl", "-sS", "-m", "10", "http://www.internet.test"];
        let page = run(Command::new("tpx").args(inside))?.success()?;
        ensure!(page.contains("The Internet"), "{page}");
        Ok(())
    })();
    sh("kubectl --context lab delete namespace only-lab --wait=false")?.success()?;
    result?;
    laptop::quit()?;
    residue::nothing_left()
}
