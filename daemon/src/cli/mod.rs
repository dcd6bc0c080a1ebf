//! The command line: what can be typed. One module per command does it.

mod child;
mod config;
mod connect;
mod connections;
mod enter;
mod env;
mod env_file;
mod explain;
mod flows;
mod launch;
mod manager;
mod maps;
mod output;
mod render;
mod routing;
mod run;
mod scope;
mod simple;

use std::{ffi::OsString, io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tpx_core::{
    config::{Config, LogLevel},
    scope::ScopeSelector,
};
use tracing_subscriber::EnvFilter;

use crate::{config::UserFile, failure::Failure, paths, userd::probe::Probe};

const EXAMPLES: &str = "\
Examples:
  tpx manager install                 put the traffic manager into the cluster, once
  tpx connect                         join the cluster of kubectl's current context
  curl web-app.emojivoto              services by name, pods and services by address
  tpx connect -n emojivoto -- make    run a command while connected, then quit
  tpx connect --vnat service          services behind virtual addresses, beside a VPN
  tpx run --context staging -- make   one command and its children see that cluster, nobody else does
  tpx status                          what is connected, and how
  tpx quit                            leave

Exit codes:
  0 success        3 not connected       6 the traffic manager
  1 internal       4 already connected   7 the privileged daemon or the kernel
  2 usage          5 Kubernetes (kubeconfig, credentials, API server)";

/// A developer's laptop inside a Kubernetes cluster.
#[derive(Parser)]
#[command(name = "tpx", version = tpx_api::VERSION, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Args)]
pub(crate) struct Global {
    /// How to print the result
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Which connection, when there are several: its name, or a regular expression that one name matches
    ///
    /// [default: the only one, else the one called default; inside of `tpx run` its own]
    // Its variable is read later: clap would take it for something that was typed, and `quit --all` for a contradiction.
    #[arg(long = "use", global = true, value_name = "NAME|REGEX")]
    used: Option<connections::Used>,
    /// Configuration file [default: config.yml in the user's configuration folder]
    #[arg(long, global = true, value_name = "PATH", env = "TPX_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// Form of results.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON document; errors as {"error": …}
    Json,
    /// One YAML document
    Yaml,
}

#[derive(Subcommand)]
enum Command {
    /// Join a cluster
    ///
    /// Returns when the datapath carries traffic: services by name, pods and services by address, for every process of
    /// this machine. With `-- CMD` it runs CMD, leaves when CMD ends, and exits with CMD's code.
    #[command(after_help = connect::EXAMPLES)]
    Connect(Box<ConnectArgs>),
    /// Run a command that sees a cluster, with its children; nobody else does
    ///
    /// Names, services and pods are there for CMD and for what it starts, static programs included; the rest of this
    /// machine goes on as before, also connected elsewhere. A VPN's routes are in nobody's way. Exits with CMD's code, or
    /// with 128 and the number of the signal that ended it; 127: there is no such command, 126: it cannot be executed.
    /// What CMD leaves running keeps the connection until it ends. Needs the eBPF datapath.
    #[command(after_help = run::EXAMPLES)]
    Run(Box<RunArgs>),
    /// Show what is connected, and how; all connections where there are several
    Status,
    /// Leave the cluster; nothing stays behind
    Quit {
        /// End all connections
        #[arg(long, conflicts_with = "used")]
        all: bool,
    },
    /// Show versions of this program, its daemons and the traffic manager
    Version,
    /// List the cluster's namespaces and whether their names resolve here
    ListNamespaces,
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Say why an address, a name or a process's connections go where they go
    ///
    /// Which rule decides, which road TCP, UDP and ping take, which translation, and what this host would do without tpx.
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::ExplainArgs),
    /// Use a pod's environment on this laptop
    Env {
        #[command(subcommand)]
        command: EnvCommand,
    },
    /// Show flows: bytes, age, process, service, road
    #[command(after_help = flows::EXAMPLES)]
    Flows(flows::FlowsArgs),
    /// Look at what is carried, and at the kernel's own maps
    Maps {
        #[command(subcommand)]
        command: MapsCommand,
    },
    /// Install or remove the traffic manager in the cluster
    Manager {
        #[command(subcommand)]
        command: ManagerCommand,
    },
    /// The user daemon; started by `tpx connect` and `tpx run`
    #[command(hide = true)]
    Userd {
        /// Its connection's name
        #[arg(long, value_parser = connections::name)]
        name: String,
    },
    /// Moves this process into a process tree and becomes CMD; started by `tpx run`
    #[command(hide = true)]
    Enter(enter::EnterArgs),
    /// Asks of the datapath what an application would; started by the user daemon inside of a process tree
    #[command(hide = true)]
    Probe(Probe),
}

impl Command {
    /// Whether the configuration decides what it does.
    fn follows_config(&self) -> bool {
        matches!(self, Command::Connect(_) | Command::Run(_) | Command::Config { .. })
    }
}

/// Flags of `tpx connect`.
#[derive(Args)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    join: JoinArgs,
    /// Name of this connection, for --use
    #[arg(long, default_value = connections::DEFAULT, value_parser = connections::name)]
    name: String,
    /// Whose processes see the cluster
    ///
    /// workstation: all. cgroup:PATH: those in a directory of the cgroup2 tree. unit:NAME: those of a service or scope of
    /// systemd's. user:NAME: those of a user. container:NAME: a container of Docker, Podman or nerdctl behind a bridge of this
    /// machine, also after it is restarted. For one command see `tpx run`.
    #[arg(long, value_name = "SCOPE", default_value = "workstation")]
    scope: ScopeSelector,
    /// Run this while connected
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Flags of `tpx run`.
#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    join: JoinArgs,
    /// Name of this connection, for --use [default: run-PID]
    #[arg(long, value_parser = connections::name)]
    name: Option<String>,
    /// Add the variables of a file of KEY=VALUE lines to CMD's environment; repeatable, the last one wins
    ///
    /// Addresses in subnets that are behind virtual addresses are exchanged for these, as by `tpx env translate`.
    #[arg(long, value_name = "F")]
    env_file: Vec<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// What to run
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Which cluster to join, and how.
#[derive(Args)]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    kube: KubeArgs,
    /// Namespace whose services resolve by a single label [default: the context's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Resolve names of these namespaces only
    #[arg(long, value_delimiter = ',', value_name = "NS,NS")]
    mapped_namespaces: Vec<String>,
    #[command(flatten)]
    routing: routing::RoutingArgs,
    /// The privileged daemon's socket
    #[arg(long, default_value = paths::ROOTD_SOCKET, env = "TPX_ROOTD_SOCKET", hide = true)]
    rootd_socket: PathBuf,
}

/// Which cluster, and where its manager lives.
#[derive(Args, Clone)]
pub(crate) struct KubeArgs {
    /// kubeconfig context [default: the current one]
    #[arg(long)]
    context: Option<String>,
    /// kubeconfig file [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the traffic manager
    #[arg(long, default_value = tpx_install::DEFAULT_NAMESPACE)]
    manager_namespace: String,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the merged configuration and where each value comes from
    ///
    /// Weakest first: defaults, what the cluster pushes, the extension tpx.io of the cluster in kubeconfig, config.yml,
    /// flags of `tpx connect`. Each key's whole value comes from the strongest source that sets it; lists are not joined.
    #[command(after_help = config::EXAMPLES)]
    View(config::ViewArgs),
}

#[derive(Subcommand)]
enum EnvCommand {
    /// Exchange addresses in subnets that are behind virtual addresses for the virtual ones
    ///
    /// Reads variables from arguments, a file, or standard input, and prints them. Subnets (10.96.0.0/16), names and all
    /// else stay as they are.
    #[command(after_help = env::EXAMPLES)]
    Translate(env::TranslateArgs),
}

#[derive(Subcommand)]
enum MapsCommand {
    /// Print what is carried and what the kernel's maps hold, with names of services beside addresses
    #[command(after_help = maps::EXAMPLES)]
    Dump(maps::DumpArgs),
}

#[derive(Subcommand)]
enum ManagerCommand {
    /// Install the traffic manager, or bring it to this version
    #[command(
        after_help = "Examples:\n  tpx manager install\n  tpx manager install --context staging --image registry.example/tpx-manager:1"
    )]
    Install {
        #[command(flatten)]
        kube: KubeArgs,
        /// Image to run [default: the one of this version]
        #[arg(long)]
        image: Option<String>,
    },
    /// Remove what install made
    Uninstall {
        #[command(flatten)]
        kube: KubeArgs,
    },
}

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match cli.command {
        // Their standard output is the command's alone.
        Command::Run(_) | Command::Enter(_) => Format::Text,
        _ => cli.global.format,
    };
    let out = output::Output::new(format);
    run(cli, &out).unwrap_or_else(|failure| {
        out.failure(&failure);
        ExitCode::from(failure.kind.exit_code())
    })
}

fn run(cli: Cli, out: &output::Output) -> Result<ExitCode, Failure> {
    let Global { used, config, .. } = cli.global;
    match cli.command {
        Command::Userd { name } => return crate::userd::main(&name),
        Command::Enter(args) => return enter::run(&args),
        Command::Probe(probe) => return enter::probe(&probe),
        _ => {}
    }
    // Before anything else, so that a typo in it leaves nothing behind. What does not follow it, as `tpx quit`, goes on.
    let file = match UserFile::load(config.as_deref()) {
        Err(failure) if !cli.command.follows_config() => {
            out.warning(&failure);
            UserFile::nothing()
        }
        loaded => loaded?,
    };
    log(Config::from(file.layer.clone()).log_cli.value);
    let used = match (used, &cli.command) {
        // It is about all of them, also inside of `tpx run`.
        (None, Command::Quit { all: true }) => None,
        (None, _) => connections::from_environment()?,
        (used, _) => used,
    };
    let name = || connections::chosen(used.as_ref());
    match cli.command {
        Command::Connect(args) => connect::run(out, file, *args),
        Command::Run(args) => run::run(out, file, *args),
        Command::Status => simple::status(out, used.as_ref()),
        Command::Quit { all: true } => simple::quit_all(out),
        Command::Quit { all: false } => simple::quit(out, used.as_ref()),
        Command::Version => simple::version(out, used.as_ref()),
        Command::ListNamespaces => simple::list_namespaces(out, &name()?),
        Command::Config { command: ConfigCommand::View(args) } => config::view(out, used.as_ref(), file, &args),
        Command::Explain(args) => explain::run(out, used.as_ref(), &args),
        Command::Env { command: EnvCommand::Translate(args) } => env::translate(out, &name()?, &args),
        Command::Flows(args) => flows::run(out, &name()?, &args),
        Command::Maps { command: MapsCommand::Dump(args) } => maps::dump(out, &name()?, &args),
        Command::Manager { command: ManagerCommand::Install { kube, image } } => manager::install(out, kube, image),
        Command::Manager { command: ManagerCommand::Uninstall { kube } } => manager::uninstall(out, kube),
        Command::Userd { .. } | Command::Enter(_) | Command::Probe(_) => unreachable!("it has begun above"),
    }
}

/// What this process and its libraries have to say besides the result.
fn log(level: LogLevel) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level.word()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
