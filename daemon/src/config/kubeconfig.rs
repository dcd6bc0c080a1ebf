//! The extension `tpx.io` of a cluster in kubeconfig: settings that travel with the cluster's address.

use kube::config::Kubeconfig;
use tpx_core::config::{Origin, Partial};

use crate::failure::{Failure, Kind};

/// The extension's name.
const NAME: &str = "tpx.io";

/// What the cluster of `context` sets in `file`.
///
/// # Errors
/// When the extension says something that is no configuration; it names the cluster and the key.
pub(crate) fn extension(file: &Kubeconfig, context: &str) -> Result<Partial, Failure> {
    let named = file.contexts.iter().find(|named| named.name == context);
    let Some(cluster) = named.and_then(|named| named.context.as_ref()).map(|context| context.cluster.as_str()) else {
        return Ok(Partial::default());
    };
    let entry = file.clusters.iter().find(|named| named.name == cluster);
    let extensions = entry.and_then(|named| named.cluster.as_ref()).and_then(|cluster| cluster.extensions.as_ref());
    match extensions.into_iter().flatten().find(|extension| extension.name == NAME) {
        Some(found) => {
            let text = serde_json::to_string(&found.extension).map_err(|e| {
                let what = format!("cannot read the extension {NAME} of cluster {cluster} in kubeconfig: {e}");
                Failure::new(Kind::Usage, what, "write it as a mapping")
            })?;
            Ok(Partial::parse(&text, &Origin::kubeconfig(cluster))?)
        }
        None => Ok(Partial::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
clusters:
- name: lab
  cluster:
    server: https://192.0.2.1
    extensions:
    - name: someone.else
      extension: {anything: 1}
    - name: tpx.io
      extension:
        routing:
          KEY: false
- name: bare
  cluster: {server: 'https://192.0.2.2'}
contexts:
- name: there
  context: {cluster: lab, user: me}
- name: bare
  context: {cluster: bare, user: me}
- name: dangling
  context: {cluster: nowhere, user: me}
current-context: there
";

    fn file(key: &str) -> Kubeconfig {
        Kubeconfig::from_yaml(&FILE.replace("KEY", key)).unwrap()
    }

    #[test]
    fn the_contexts_own_cluster_is_asked() {
        let layer = extension(&file("autoResolveConflicts"), "there").unwrap();
        let setting = layer.auto_resolve_conflicts.unwrap();
        assert!(!setting.value);
        assert_eq!(setting.origin.to_string(), "kubeconfig (extension tpx.io of cluster lab)");
        for context in ["bare", "dangling", "unknown"] {
            assert_eq!(extension(&file("autoResolveConflicts"), context).unwrap(), Partial::default(), "{context}");
        }
    }

    #[test]
    fn a_typo_names_the_cluster() {
        let failure = extension(&file("autoResolve"), "there").unwrap_err();
        assert_eq!(
            failure.to_string(),
            "kubeconfig (extension tpx.io of cluster lab): routing.autoResolve: unknown key; \
             did you mean routing.autoResolveConflicts?"
        );
    }
}
