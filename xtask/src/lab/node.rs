//! The node: one machine that is a whole cluster.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use super::cgroup;
use super::config::{
    API_PORT, Lab, NODE_IP, NODE_IP6, NODE_POD_CIDR, NODE_POD_CIDR6, POD_CIDRS, SERVICE_CIDR, SERVICE_CIDR6,
};
use super::mounts;
use super::supervise::{self, After, Daemon};
use crate::paths;
use crate::run::feed;

/// The programs' search path inside the node.
pub(crate) fn path() -> String {
    let root = paths::packages();
    let root = root.display();
    format!(
        "{}:{root}/usr/bin:{root}/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        paths::cluster_bin().display()
    )
}

/// Runs as the node's first process.
pub(crate) fn init(lab: &Lab) -> Result<()> {
    // The mount table is read while it is still the machine's.
    let hierarchies = cgroup::hierarchies()?;
    rustix::system::sethostname(lab.cluster().node.as_bytes())?;
    mounts::private()?;
    cgroups(&hierarchies)?;
    mounts::run_lab()?;
    for dir in ["/var/lib", "/var/log"] {
        mounts::empty(dir, "755")?;
    }
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)?;
    pretend_sysctls()?;
    network()?;
    supervise::mark("network")?;
    supervise::run(lab, daemons(lab))
}

/// The cgroup trees as this cgroup namespace sees them.
fn cgroups(hierarchies: &[cgroup::Hierarchy]) -> Result<()> {
    if hierarchies.iter().all(|h| h.v1.is_none()) {
        mounts::fresh("cgroup2", "/sys/fs/cgroup", "")?;
        // Processes live in leaves; then the controllers can be handed down to pods.
        fs::create_dir_all("/sys/fs/cgroup/init")?;
        fs::write("/sys/fs/cgroup/init/cgroup.procs", "0")?;
        for controller in fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?.split_whitespace() {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"))
                .with_context(|| format!("cannot hand down the {controller} controller"))?;
        }
        return Ok(());
    }
    mounts::empty("/sys/fs/cgroup", "755")?;
    for hierarchy in hierarchies {
        let (Some(options), Some(name)) = (&hierarchy.v1, hierarchy.path.file_name()) else { continue };
        let target = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir_all(&target)?;
        let options = std::ffi::CString::new(options.as_str())?;
        mount("cgroup", &target, "cgroup", MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("cannot mount {}", target.display()))?;
    }
    Ok(())
}

/// kubelet wants these to have certain values. They belong to the whole machine, so it is shown files instead.
fn pretend_sysctls() -> Result<()> {
    let values = [
        ("vm/overcommit_memory", "1"),
        ("vm/panic_on_oom", "0"),
        ("kernel/panic", "10"),
        ("kernel/panic_on_oops", "1"),
        ("kernel/keys/root_maxkeys", "1000000"),
        ("kernel/keys/root_maxbytes", "25000000"),
    ];
    fs::create_dir_all("/run/sysctl")?;
    for (name, value) in values {
        let file = format!("/run/sysctl/{}", name.replace('/', "_"));
        fs::write(&file, format!("{value}\n"))?;
        mount_bind(&file, format!("/proc/sys/{name}")).with_context(|| format!("cannot cover {name}"))?;
    }
    Ok(())
}

/// A bridge without ports stands for the node's interface. There is no default route: nothing can leave. Pods have routes of their own; the
/// rest of their subnet is unreachable, as network plugins set it.
fn network() -> Result<()> {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("cannot set {name}"))?;
    }
    feed(
        Command::new("ip").args(["-batch", "-"]),
        &format!(
            "link set lo up
link add node0 type bridge
addr add {NODE_IP}/24 dev node0
addr add {NODE_IP6}/64 dev node0 nodad
link set node0 up
route add {SERVICE_CIDR} dev node0 src {NODE_IP}
route add {SERVICE_CIDR6} dev node0 src {NODE_IP6}
route add unreachable {NODE_POD_CIDR}
route add unreachable {NODE_POD_CIDR6}
"
        ),
    )?;
    feed(Command::new("nft").args(["-f", "-"]), include_str!("node.nft")).map(drop)
}

/// In the order in which they can start; each comes up as soon as what it needs is there.
fn daemons(lab: &Lab) -> Vec<Daemon> {
    let (etc, pki) = (lab.etc(), lab.pki());
    let (etc, pki) = (etc.display(), pki.display());
    let daemon = |name: &'static str, program: &str, after: Vec<After>, arguments: Vec<String>| {
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", path());
        Daemon { name, command, after }
    };
    let kube = |name: &'static str, after: Vec<After>, arguments: Vec<String>| {
        daemon(name, "kubeall", after, [vec![name.to_owned()], arguments].concat())
    };
    let api = || vec![After::Port(API_PORT)];
    let runtime = || {
        vec![
            After::File("/run/containerd/containerd.sock".into()),
            After::File(format!("{}/images", super::config::RUN_LAB).into()),
        ]
    };
    let client = |name: &str| {
        vec![
            format!("--kubeconfig={pki}/{name}.kubeconfig"),
            format!("--authentication-kubeconfig={pki}/{name}.kubeconfig"),
            format!("--authorization-kubeconfig={pki}/{name}.kubeconfig"),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
        ]
    };
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    vec![
        kube(
            "etcd",
            vec![],
            strings(&[
                "--name=lab",
                "--data-dir=/var/lib/etcd",
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
            ])
            .into_iter()
            .chain(strings(&[
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=lab=http://127.0.0.1:2380",
                "--log-level=warn",
            ]))
            .collect(),
        ),
        daemon("containerd", "containerd", vec![], vec!["--config".into(), format!("{etc}/containerd.toml")]),
        kube(
            "kube-apiserver",
            vec![After::Port(2379)],
            vec![
                "--etcd-servers=http://127.0.0.1:2379".into(),
                format!("--advertise-address={NODE_IP}"),
                format!("--secure-port={API_PORT}"),
                format!("--service-cluster-ip-range={SERVICE_CIDR},{SERVICE_CIDR6}"),
                "--authorization-mode=Node,RBAC".into(),
                "--allow-privileged=true".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                format!("--client-ca-file={pki}/ca.crt"),
                format!("--tls-cert-file={pki}/apiserver.crt"),
                format!("--tls-private-key-file={pki}/apiserver.key"),
                format!("--kubelet-certificate-authority={pki}/ca.crt"),
                format!("--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt"),
                format!("--kubelet-client-key={pki}/apiserver-kubelet-client.key"),
                "--kubelet-preferred-address-types=InternalIP".into(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                format!("--service-account-key-file={pki}/sa.pub"),
                format!("--service-account-signing-key-file={pki}/sa.key"),
                format!("--requestheader-client-ca-file={pki}/front-proxy-ca.crt"),
                "--requestheader-allowed-names=front-proxy-client".into(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
                "--requestheader-group-headers=X-Remote-Group".into(),
                "--requestheader-username-headers=X-Remote-User".into(),
                format!("--proxy-client-cert-file={pki}/front-proxy-client.crt"),
                format!("--proxy-client-key-file={pki}/front-proxy-client.key"),
            ],
        ),
        kube(
            "kube-controller-manager",
            api(),
            [
                client("kube-controller-manager"),
                vec![
                    "--kube-api-qps=200".into(),
                    "--kube-api-burst=400".into(),
                    "--use-service-account-credentials".into(),
                    format!("--service-account-private-key-file={pki}/sa.key"),
                    format!("--root-ca-file={pki}/ca.crt"),
                    format!("--cluster-signing-cert-file={pki}/ca.crt"),
                    format!("--cluster-signing-key-file={pki}/ca.key"),
                    format!("--service-cluster-ip-range={SERVICE_CIDR},{SERVICE_CIDR6}"),
                    format!("--cluster-cidr={POD_CIDRS}"),
                    // The one node is created with its ranges: waiting for them costs ten seconds.
                    "--allocate-node-cidrs=false".into(),
                ],
            ]
            .concat(),
        ),
        kube("kube-scheduler", api(), client("kube-scheduler")),
        kube(
            "kubelet",
            [api(), runtime()].into_iter().flatten().collect(),
            vec![
                format!("--config={etc}/kubelet.yaml"),
                format!("--kubeconfig={pki}/kubelet.kubeconfig"),
                format!("--hostname-override={}", lab.cluster().node),
                format!("--node-ip={NODE_IP},{NODE_IP6}"),
            ],
        ),
        kube("kube-proxy", api(), vec![format!("--config={etc}/kube-proxy.yaml")]),
    ]
}
