//! `tpx manager install` and `uninstall`: the cluster side, put there by the laptop.

use std::process::ExitCode;

use tpx_install::{InstallError, Options};

use super::{KubeArgs, output::Output, render};
use crate::{
    failure::{Failure, Kind},
    userd::kubernetes::{self, Cluster},
};

/// `tpx manager install`.
pub(crate) fn install(out: &Output, kube: KubeArgs, image: Option<String>) -> Result<ExitCode, Failure> {
    let options = Options { namespace: kube.manager_namespace.clone(), image, ..Options::default() };
    let progress = out.progress();
    let installed = block_on(async {
        let cluster = Cluster::load(kube.kubeconfig.as_deref(), kube.context.as_deref()).await?;
        tpx_install::install(&cluster.client, &options, &mut |step: &str| progress.step(step))
            .await
            .map_err(|e| failure(e, &cluster.server))
    })?;
    drop(progress);
    out.result(&installed, || {
        format!("Traffic manager {} is ready in namespace {}", installed.version, installed.namespace)
    });
    Ok(ExitCode::SUCCESS)
}

/// `tpx manager uninstall`.
pub(crate) fn uninstall(out: &Output, kube: KubeArgs) -> Result<ExitCode, Failure> {
    let options = Options { namespace: kube.manager_namespace.clone(), ..Options::default() };
    let progress = out.progress();
    let removed = block_on(async {
        let cluster = Cluster::load(kube.kubeconfig.as_deref(), kube.context.as_deref()).await?;
        tpx_install::uninstall(&cluster.client, &options, &mut |step: &str| progress.step(step))
            .await
            .map_err(|e| failure(e, &cluster.server))
    })?;
    drop(progress);
    out.result(&removed, || render::removed(&removed));
    Ok(ExitCode::SUCCESS)
}

fn failure(error: InstallError, server: &str) -> Failure {
    match error {
        InstallError::Kubernetes(e) => kubernetes::failure(&e, server),
        other => Failure::new(Kind::Manager, other.to_string(), other.next_step()),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::internal(e.to_string()))?.block_on(work)
}
