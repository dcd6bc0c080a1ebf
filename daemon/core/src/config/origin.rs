//! Where a value comes from, and what is wrong with one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who may set a value, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// tpx itself.
    Default,
    /// The cluster's administrator, through the traffic manager.
    Cluster,
    /// The extension `tpx.io` of a cluster in kubeconfig.
    Kubeconfig,
    /// The user's `config.yml`.
    File,
    /// A flag of the command line.
    Flag,
}

/// A place in a text, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its line.
    pub line: u32,
    /// Its column, in characters.
    pub column: u32,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Who set it.
    pub source: Source,
    /// A file's path, a flag, or words for it.
    pub name: String,
    /// Where in it, if it is a text whose places the user can look up.
    pub place: Option<Place>,
}

impl Origin {
    /// tpx itself.
    #[must_use]
    pub fn default_value() -> Self {
        Self { source: Source::Default, name: "default".into(), place: None }
    }

    /// What the traffic manager sent.
    #[must_use]
    pub fn cluster() -> Self {
        Self { source: Source::Cluster, name: "the cluster's client configuration".into(), place: None }
    }

    /// The extension of `cluster` in kubeconfig.
    #[must_use]
    pub fn kubeconfig(cluster: &str) -> Self {
        let name = format!("kubeconfig (extension tpx.io of cluster {cluster})");
        Self { source: Source::Kubeconfig, name, place: None }
    }

    /// A configuration file.
    #[must_use]
    pub fn file(path: &str) -> Self {
        Self { source: Source::File, name: path.into(), place: None }
    }

    /// A flag, with its dashes.
    #[must_use]
    pub fn flag(flag: &str) -> Self {
        Self { source: Source::Flag, name: flag.into(), place: None }
    }

    /// The same, at a place in it. An extension of kubeconfig is read as a copy, whose places would mislead.
    #[must_use]
    pub fn at(&self, place: Option<Place>) -> Self {
        Self { place: place.filter(|_| self.source != Source::Kubeconfig), ..self.clone() }
    }
}

/// `config.yml:3:18`, `--vnat`, `default`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.place {
            Some(Place { line, column }) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

impl<T> Setting<T> {
    /// A value and where it comes from.
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// What is wrong with a configuration: one line that begins with the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {}{what}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ConfigError {
    /// Where it stands.
    pub origin: Origin,
    /// The key's path, as `routing.virtualSubnet`; empty when no key is to blame, or a flag says it already.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub next: String,
}

impl ConfigError {
    /// Puts one together; flags are known by their own names, not by keys.
    pub(super) fn new(origin: Origin, key: &str, what: impl Into<String>, next: impl Into<String>) -> Self {
        let key = if origin.source == Source::Flag { String::new() } else { key.to_owned() };
        Self { origin, key, what: what.into(), next: next.into() }
    }
}
