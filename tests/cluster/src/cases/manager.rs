//! `tpx manager`: what was not made by tpx is neither changed nor deleted.

use anyhow::{Result, ensure};

use super::Case;
use crate::{cluster::kubectl, process::sh};

pub(super) const CASES: &[Case] = &[
    ("manager::a_namespace_of_others_stays", theirs),
    ("manager::a_namespace_with_things_of_others_stays", shared),
    ("manager::again_while_the_namespace_goes", again),
];

/// A namespace that goes when dropped.
struct Namespace(&'static str);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = sh(&format!("kubectl delete namespace {} --ignore-not-found --wait=false", self.0));
    }
}

fn manager(command: &str, namespace: &Namespace) -> Result<String> {
    sh(&format!("tpx manager {command} --manager-namespace {}", namespace.0))?.success()
}

fn theirs() -> Result<()> {
    let namespace = Namespace("tpx-theirs");
    sh("kubectl create namespace tpx-theirs && kubectl -n tpx-theirs create secret generic db --from-literal=a=b")?
        .success()?;
    let before = kubectl(&["get", "namespace", "tpx-theirs"])?;
    manager("install", &namespace)?;
    let after = kubectl(&["get", "namespace", "tpx-theirs"])?;
    ensure!(before["metadata"]["labels"] == after["metadata"]["labels"], "{after}");
    let said = manager("uninstall", &namespace)?;
    ensure!(said.contains("Deployment traffic-manager"), "{said}");
    ensure!(said.contains("Kept Namespace tpx-theirs: tpx did not make it"), "{said}");
    kubectl(&["-n", "tpx-theirs", "get", "secret", "db"])?;
    Ok(())
}

fn shared() -> Result<()> {
    let namespace = Namespace("tpx-shared");
    manager("install", &namespace)?;
    sh("kubectl -n tpx-shared create secret generic db --from-literal=a=b")?.success()?;
    let said = manager("uninstall", &namespace)?;
    ensure!(said.contains("Kept Namespace tpx-shared: Secret db is in it"), "{said}");
    sh("kubectl -n tpx-shared delete secret db")?.success()?;
    let said = manager("uninstall", &namespace)?;
    ensure!(said.trim() == "Removed Namespace tpx-shared", "{said}");
    Ok(())
}

fn again() -> Result<()> {
    let namespace = Namespace("tpx-again");
    manager("install", &namespace)?;
    let said = manager("uninstall", &namespace)?;
    ensure!(said.contains("Namespace tpx-again") && !said.contains("Kept"), "{said}");
    // The pod takes a while to end, and the namespace with it.
    manager("install", &namespace)?;
    let namespaces = kubectl(&["get", "namespace", "tpx-again"])?;
    ensure!(namespaces["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tpx", "{namespaces}");
    manager("uninstall", &namespace)?;
    Ok(())
}
