//! How the command line talks to the user daemon: one JSON document a line over a Unix socket that only its user can
//! open. A request is answered by any number of [`Reply::Progress`] lines and one final line.

mod client;
mod questions;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tpx_core::{
    config::{Config, Partial},
    plan::Scope,
};

pub(crate) use client::Client;
pub(crate) use questions::{
    Explained, FlowRow, FlowsView, MapsView, NameExplanation, Process, ProcessExplanation, ScopeRow, Target, Variable,
    VnatRow,
};
pub(crate) use server::{Bound, Exchange, bind};

use crate::{failure::Failure, userd::status::Status};

/// Longest line in either direction, in bytes.
pub(crate) const MAX_LINE: usize = 16 << 20;

/// What the command line asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Connect to a cluster; once in a daemon's life.
    Connect(ConnectParams),
    /// What is going on.
    Status,
    /// End the connection and the daemon.
    Quit,
    /// The kernel's own maps.
    MapsDump,
    /// What is carried.
    Flows {
        /// Also what ended lately.
        ended: bool,
    },
    /// The namespaces that are mapped.
    ListNamespaces,
    /// The configuration that the connection runs with.
    ConfigView,
    /// Why an address, a name's addresses or a process's connections go where they go.
    Explain {
        /// What is asked about.
        target: Target,
    },
    /// Variables of a pod, with the addresses that they have on this laptop.
    TranslateEnv {
        /// The variables.
        variables: Vec<Variable>,
    },
}

/// What `tpx connect` was asked for, before defaults from kubeconfig.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ConnectParams {
    /// Namespace whose services are known by a single label.
    pub namespace: Option<String>,
    /// kubeconfig context.
    pub context: Option<String>,
    /// kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// Only these namespaces' names are the cluster's; empty: all.
    pub mapped_namespaces: Vec<String>,
    /// Where the manager runs.
    pub manager_namespace: String,
    /// The privileged daemon's socket.
    pub rootd_socket: PathBuf,
    /// Whose processes see the cluster.
    pub scope: Scope,
    /// The container that the scope is; where it is, the user daemon finds out.
    pub container: Option<String>,
    /// What flags and the user's file set, the flags over the file. What kubeconfig and the cluster set lies below.
    pub settings: Box<Partial>,
}

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", content = "body", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The step that is going on now.
    Progress(String),
    /// Final: done, nothing to tell.
    Done,
    /// Final: the state.
    Status(Box<Status>),
    /// Final: the kernel's maps.
    Maps(Box<MapsView>),
    /// Final: what is carried.
    Flows(Box<FlowsView>),
    /// Final: the configuration.
    Config(Box<Config>),
    /// Final: an explanation.
    Explained(Box<Explained>),
    /// Final: the variables, in the order of the question.
    Env(Vec<Variable>),
    /// Final: namespaces.
    Namespaces(Vec<NamespaceRow>),
    /// Final: it failed.
    Failed(Failure),
}

/// One row of `tpx list-namespaces`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NamespaceRow {
    /// Its name.
    pub name: String,
    /// Whether its services resolve on the laptop.
    pub mapped: bool,
    /// Whether its services resolve by a single label.
    pub connected: bool,
}
