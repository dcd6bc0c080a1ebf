//! The configuration: what can be set, by whom, and who wins.
//!
//! Five sources set the same keys: tpx's defaults, the cluster's administrator, an extension in kubeconfig, the user's
//! `config.yml`, and flags. Each is read into a [`Partial`], in which a key that is not set differs from one that is set
//! to its default. Layers are merged with [`Partial::over`], weakest last; the result, [`Config`], knows for every value
//! where it stands, so that it can be shown, and blamed.
//!
//! A key that does not exist is an error in every source: a typo must not look like a setting.

mod check;
mod derive;
mod origin;
mod settings;
mod suggest;
mod tree;
mod value;

pub use origin::{ConfigError, Origin, Place, Setting, Source};
pub use settings::{Config, List, Partial, Row};
pub use suggest::nearest;
pub use value::{Datapath, DnsName, Limit, LogLevel, Mapping, Shown};

#[cfg(test)]
mod tests;
