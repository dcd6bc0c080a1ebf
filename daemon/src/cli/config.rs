//! `tpx config view`: what is configured, and by whom.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use kube::config::Kubeconfig;
use serde::Serialize;
use serde_json::{Map, Value};
use tpx_core::config::{Config, Partial};

use super::{
    connections::{self, Used},
    output::Output,
    render, simple,
};
use crate::{
    config::{UserFile, extension, merged},
    failure::{Failure, Kind},
    ipc::{Reply, Request},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx config view                         what the connection runs with
  tpx config view --client-only           without the cluster's part; needs no connection
  tpx config view --format yaml           `config` in it is a valid config.yml
  tpx --config ./other.yml config view --client-only";

/// Flags of `tpx config view`.
#[derive(Args)]
pub(crate) struct ViewArgs {
    /// Leave out what the cluster pushes and the flags of `tpx connect`; needs no connection
    #[arg(short, long)]
    client_only: bool,
    /// kubeconfig context whose extension is read [default: the current one]
    #[arg(long, requires = "client_only")]
    context: Option<String>,
    /// kubeconfig file [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, requires = "client_only")]
    kubeconfig: Option<PathBuf>,
}

/// Runs `tpx config view`.
pub(crate) fn view(out: &Output, used: Option<&Used>, file: UserFile, args: &ViewArgs) -> Result<ExitCode, Failure> {
    let config = if args.client_only {
        let kubeconfig = kubeconfig_layer(args.kubeconfig.as_deref(), args.context.as_deref())?;
        merged(file.layer, kubeconfig, None)?
    } else {
        let Some(mut client) = simple::open(&connections::chosen(used)?)? else {
            return Err(Failure::new(
                Kind::NotConnected,
                "not connected, so what the cluster pushes is not known",
                "run `tpx connect`, or leave that out with --client-only",
            ));
        };
        match client.ask(&Request::ConfigView, &mut |_| {})? {
            Reply::Config(config) => *config,
            other => return Err(simple::unexpected(&other)),
        }
    };
    let view = View::new(&config, file.path.as_deref());
    out.result(&view, || text(&config, file.path.as_deref()));
    Ok(ExitCode::SUCCESS)
}

/// What the extension in kubeconfig sets; nothing where there is no kubeconfig and nobody asked for one.
fn kubeconfig_layer(path: Option<&Path>, context: Option<&str>) -> Result<Partial, Failure> {
    let read = match path {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let file = match read {
        Ok(file) => file,
        Err(_) if path.is_none() && context.is_none() => return Ok(Partial::default()),
        Err(e) => return Err(crate::userd::kubernetes::unreadable(&e)),
    };
    match context.map(str::to_owned).or_else(|| file.current_context.clone()) {
        Some(context) => extension(&file, &context),
        None => Ok(Partial::default()),
    }
}

/// The form for programs.
#[derive(Serialize)]
struct View {
    /// The configuration, in the form of a configuration file.
    config: Map<String, Value>,
    /// Where each key's value comes from.
    sources: Map<String, Value>,
    /// The user's file, whether it is there or not.
    file: Option<String>,
}

impl View {
    fn new(config: &Config, file: Option<&Path>) -> Self {
        let (mut tree, mut sources) = (Map::new(), Map::new());
        for row in config.rows() {
            sources.insert(row.key.clone(), row.origin.to_string().into());
            let value = serde_json::to_value(&row.value).unwrap_or_default();
            let (branch, leaf) = row.key.rsplit_once('.').unwrap_or(("", &row.key));
            if branch.is_empty() {
                tree.insert(leaf.into(), value);
            } else if let Value::Object(inner) =
                tree.entry(branch.to_owned()).or_insert_with(|| Value::Object(Map::new()))
            {
                inner.insert(leaf.into(), value);
            }
        }
        Self { config: tree, sources, file: file.map(|path| path.display().to_string()) }
    }
}

fn text(config: &Config, file: Option<&Path>) -> String {
    let rows = config.rows().into_iter().map(|row| vec![row.key, row.value.to_string(), row.origin.to_string()]);
    let table = render::table(&["KEY", "VALUE", "FROM"], rows);
    match file {
        Some(path) if path.exists() => table,
        Some(path) => format!("{table}\n\nThere is no {}", path.display()),
        None => table,
    }
}

#[cfg(test)]
mod tests {
    use tpx_core::config::Origin;

    use super::*;

    #[test]
    fn the_printed_configuration_is_a_configuration_file_that_means_the_same() {
        let text = "routing:\n  virtualSubnet: 100.10.20.0/24\ndns:\n  mappings: [{name: a.b, aliasFor: c.d}]\n  \
                    lookupTimeout: 500ms\nlogLevels: {cli: debug}\n";
        let config = Config::from(Partial::parse(text, &Origin::file("one")).unwrap());
        let printed = serde_saphyr::to_string(&View::new(&config, None).config).unwrap();
        let again = Config::from(Partial::parse(&printed, &Origin::file("two")).unwrap());
        let values = |config: &Config| config.rows().into_iter().map(|row| (row.key, row.value)).collect::<Vec<_>>();
        assert_eq!(values(&config), values(&again), "{printed}");
    }

    #[test]
    fn each_value_names_its_source() {
        let config = Config::from(Partial::parse("datapath: tun\n", &Origin::file("my.yml")).unwrap());
        let view = View::new(&config, None);
        assert_eq!(view.sources["datapath"], "my.yml:1:11");
        assert_eq!(view.sources["dns.lookupTimeout"], "default");
        assert!(
            super::text(&config, None)
                .lines()
                .any(|line| line.starts_with("datapath") && line.ends_with("my.yml:1:11"))
        );
    }
}
