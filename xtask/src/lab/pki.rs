//! The cluster's certificates and kubeconfigs, made anew for every lab.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::config::{API_PORT, API_SERVICE_IP, Cluster, NODE_IP, NODE_IP6};

/// Where a kubeconfig's credentials come from, and how long they hold.
const YEAR: Duration = Duration::days(365);

struct Pki {
    dir: PathBuf,
    /// What kubeconfigs call the cluster.
    context: &'static str,
}

/// Writes everything for a cluster into `dir`.
pub(crate) fn write(dir: &Path, cluster: &Cluster) -> Result<()> {
    fs::create_dir_all(dir)?;
    let (node, api) = (cluster.node, cluster.api_ip);
    let pki = Pki { dir: dir.to_owned(), context: cluster.context };
    let ca = pki.authority("ca", "lab-ca")?;
    let front = pki.authority("front-proxy-ca", "lab-front-proxy-ca")?;
    let server = [Usage::ServerAuth];
    let client = [Usage::ClientAuth];
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    pki.leaf(
        &ca,
        "apiserver",
        "kube-apiserver",
        "",
        &server,
        &[&names[..], &["127.0.0.1", "::1", NODE_IP, NODE_IP6, API_SERVICE_IP, api]].concat(),
        YEAR,
    )?;
    pki.leaf(&ca, "kubelet-server", node, "", &server, &[node, NODE_IP, NODE_IP6, "127.0.0.1"], YEAR)?;
    pki.leaf(&ca, "apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters", &client, &[], YEAR)?;
    pki.leaf(&front, "front-proxy-client", "front-proxy-client", "", &client, &[], YEAR)?;
    let own = format!("https://{NODE_IP}:{API_PORT}");
    for (file, user, group) in [
        ("admin", "admin", "system:masters"),
        ("kube-controller-manager", "system:kube-controller-manager", ""),
        ("kube-scheduler", "system:kube-scheduler", ""),
        ("kube-proxy", "system:kube-proxy", ""),
        ("kubelet", &format!("system:node:{node}"), "system:nodes"),
    ] {
        pki.leaf(&ca, file, user, group, &client, &[], YEAR)?;
        pki.kubeconfig(file, file, &own)?;
    }
    // The laptop's own, and one whose time is over: what a login that nobody renewed looks like.
    let api = format!("https://{api}:{API_PORT}");
    pki.leaf(&ca, "dev", "dev", "system:masters", &client, &[], YEAR)?;
    pki.leaf(&ca, "expired", "dev", "system:masters", &client, &[], -Duration::HOUR)?;
    pki.kubeconfig("laptop", "dev", &api)?;
    pki.kubeconfig("laptop-expired", "expired", &api)?;
    let service_accounts = KeyPair::generate()?;
    pki.secret("sa.key", &service_accounts.serialize_pem())?;
    pki.file("sa.pub", &service_accounts.public_key_pem())
}

impl Pki {
    fn file(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.dir.join(name), text).with_context(|| format!("cannot write {name}"))
    }

    fn secret(&self, name: &str, text: &str) -> Result<()> {
        self.file(name, text)?;
        Ok(fs::set_permissions(self.dir.join(name), fs::Permissions::from_mode(0o600))?)
    }

    fn authority(&self, file: &str, name: &str) -> Result<Issuer<'static, KeyPair>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        self.file(&format!("{file}.crt"), &params.self_signed(&key)?.pem())?;
        self.secret(&format!("{file}.key"), &key.serialize_pem())?;
        Ok(Issuer::new(params, key))
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "a certificate has that many parts, and a struct would only rename them"
    )]
    fn leaf(
        &self,
        by: &Issuer<'_, KeyPair>,
        file: &str,
        user: &str,
        group: &str,
        usage: &[Usage],
        names: &[&str],
        life: Duration,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::DAY;
        params.not_after = now + life;
        params.distinguished_name.push(DnType::CommonName, user);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usage.to_vec();
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into()?),
            });
        }
        self.file(&format!("{file}.crt"), &params.signed_by(&key, by)?.pem())?;
        self.secret(&format!("{file}.key"), &key.serialize_pem())
    }

    /// A kubeconfig with everything inside, so that it can be copied anywhere and joined with another. JSON is YAML.
    fn kubeconfig(&self, file: &str, user: &str, server: &str) -> Result<()> {
        let data = |name: String| -> Result<String> { Ok(STANDARD.encode(fs::read(self.dir.join(name))?)) };
        let name = self.context;
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": data("ca.crt".into())?}}],
            "users": [{"name": name, "user": {"client-certificate-data": data(format!("{user}.crt"))?, "client-key-data": data(format!("{user}.key"))?}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        });
        self.secret(&format!("{file}.kubeconfig"), &serde_json::to_string_pretty(&config)?)
    }
}
