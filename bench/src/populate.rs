//! Makes a cluster large: namespaces with services in them, by the thousand. What is there already stays.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::PostParams;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tpx_bench::said::Populated;

/// Requests that are under way at one time.
const AT_ONCE: usize = 32;

#[derive(Parser)]
#[command(name = "tpx-populate", about)]
struct Cli {
    /// kubeconfig's context
    #[arg(long)]
    context: String,
    /// How many namespaces
    #[arg(long, default_value_t = 1000)]
    namespaces: usize,
    /// How many services, spread over them
    #[arg(long, default_value_t = 5000)]
    services: usize,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(cli: &Cli) -> Result<String> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let options = KubeConfigOptions { context: Some(cli.context.clone()), ..KubeConfigOptions::default() };
    let client = Client::try_from(Config::from_kubeconfig(&options).await.context("kubeconfig")?)?;
    let begin = Instant::now();
    let namespaces = Api::<Namespace>::all(client.clone());
    let made = (0..cli.namespaces).map(|n| create(namespaces.clone(), json!({"metadata": {"name": namespace(n)}})));
    stream::iter(made).buffer_unordered(AT_ONCE).try_collect::<()>().await.context("namespaces")?;
    let made = (0..cli.services).map(|n| {
        let api = Api::<Service>::namespaced(client.clone(), &namespace(n % cli.namespaces.max(1)));
        let spec = json!({"selector": {"app": "nobody"}, "ports": [{"name": "http", "port": 80}]});
        create(api, json!({"metadata": {"name": format!("service-{n}")}, "spec": spec}))
    });
    stream::iter(made).buffer_unordered(AT_ONCE).try_collect::<()>().await.context("services")?;
    let (namespaces, services) = (cli.namespaces, cli.services);
    let done = Populated { namespaces, services, seconds: begin.elapsed().as_secs_f64() };
    Ok(serde_json::to_string(&done)?)
}

fn namespace(n: usize) -> String {
    format!("crowd-{n}")
}

async fn create<K>(api: Api<K>, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    match api.create(&PostParams::default(), &serde_json::from_value(object)?).await {
        Ok(_) => Ok(()),
        // It is there already.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
