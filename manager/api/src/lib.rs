//! What laptops and the manager say to each other: generated messages here, validated types beside them.
#![forbid(unsafe_code)]

mod facts;
mod version;

pub use self::{
    facts::{Facts, FactsError},
    version::{Mismatch, compatible},
};

/// Generated from `proto/manager.proto`.
#[expect(missing_docs, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("tpx.manager.v1");
}

/// The version of this build, as both sides compare it.
pub const VERSION: &str = match option_env!("TPX_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// The TCP port of the manager: control (gRPC) and streams (HTTP/2 CONNECT) share it.
pub const MANAGER_PORT: u16 = 8081;

/// Metadata key and header that carries the session id on streams.
pub const SESSION_HEADER: &str = "tpx-session";

/// The ConfigMap, in the manager's namespace, with what laptops are configured with; its key is [`CLIENT_CONFIG_KEY`].
pub const CLIENT_CONFIG_MAP: &str = "tpx-client";

/// The key of [`CLIENT_CONFIG_MAP`] whose text laptops get.
pub const CLIENT_CONFIG_KEY: &str = "config.yml";

/// Where the manager's pod finds the keys of [`CLIENT_CONFIG_MAP`] as files.
pub const CLIENT_CONFIG_FOLDER: &str = "/etc/tpx/client";
