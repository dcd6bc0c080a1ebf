//! The configuration files of the node's daemons.
//!
//! Three choices hold for machines that give their processes less than everything: no negative OOM scores (they need
//! CAP_SYS_RESOURCE), `failCgroupV1: false`, and no conntrack sizes, which are the machine's and not the namespace's.

use std::fs;

use anyhow::{Context, Result};

use super::config::{DNS_SERVICE_IP, Lab, NODE_IP, NODE_POD_CIDR, NODE_POD_CIDR6, POD_CIDRS};
use crate::image::PAUSE;
use crate::paths;

/// Writes them to the lab's `etc`.
pub(crate) fn write(lab: &Lab) -> Result<()> {
    let etc = lab.etc();
    fs::create_dir_all(etc.join("cni"))?;
    let pki = lab.pki();
    let (pki, root) = (pki.display(), paths::packages());
    let (root, node) = (root.display(), lab.cluster().node);
    let put =
        |name: &str, text: String| fs::write(etc.join(name), text).with_context(|| format!("cannot write {name}"));
    put("resolv.conf", format!("nameserver {DNS_SERVICE_IP}\n"))?;
    put(
        "containerd.toml",
        format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root}/usr/lib/cni"
    conf_dir = "{etc}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{root}/usr/sbin/runc"
        SystemdCgroup = false
"#,
            etc = etc.display()
        ),
    )?;
    // One link per pod and no bridge: every packet crosses the node's own forwarding path, where kube-proxy's and the lab's rules see it.
    put(
        "cni/10-lab.conflist",
        format!(
            r#"{{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {{"type": "ptp", "ipMasq": false, "ipam": {{"type": "host-local", "dataDir": "/run/cni-ipam",
    "ranges": [[{{"subnet": "{NODE_POD_CIDR}"}}], [{{"subnet": "{NODE_POD_CIDR6}"}}]],
    "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}}
]}}
"#
        ),
    )?;
    put(
        "kubelet.yaml",
        format!(
            "kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/kubelet-server.crt
tlsPrivateKeyFile: {pki}/kubelet-server.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
protectKernelDefaults: true
oomScoreAdj: 0
clusterDNS: [{DNS_SERVICE_IP}]
clusterDomain: cluster.local
resolvConf: {etc}/resolv.conf
healthzPort: 0
volumePluginDir: /var/lib/kubelet/plugins/volume
nodeStatusUpdateFrequency: 1s
syncFrequency: 10s
volumeStatsAggPeriod: 0s
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
kubeAPIQPS: 100
kubeAPIBurst: 200
",
            etc = etc.display()
        ),
    )?;
    put(
        "kube-proxy.yaml",
        format!(
            "kind: KubeProxyConfiguration
apiVersion: kubeproxy.config.k8s.io/v1alpha1
mode: nftables
nftables: {{syncPeriod: 10s, minSyncPeriod: 100ms}}
clientConnection: {{kubeconfig: {pki}/kube-proxy.kubeconfig}}
hostnameOverride: {node}
bindAddress: {NODE_IP}
clusterCIDR: {POD_CIDRS}
oomScoreAdj: 0
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
"
        ),
    )
}
