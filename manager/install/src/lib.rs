//! Puts the traffic manager into a cluster, takes it out again, and finds it.
//!
//! What is installed is data ([`objects`]); installing is server-side apply of that data and waiting, so doing it twice
//! changes nothing and an upgrade is the same command. What others have made is neither changed nor deleted.
#![forbid(unsafe_code)]

mod contents;
mod find;
mod install;
mod objects;
mod state;

use serde::Serialize;

pub use self::{
    find::{FindError, ManagerPod, find_manager},
    install::{InstallError, install, uninstall},
    objects::objects,
};

/// Where the manager lives unless told otherwise.
pub const DEFAULT_NAMESPACE: &str = "tpx-system";

/// Name of the Deployment, the Service and the ServiceAccount.
pub const NAME: &str = "traffic-manager";

/// The label value that marks what is ours, and the field manager of server-side apply.
pub const MANAGED_BY: &str = "tpx";

/// What to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Namespace of the manager; made when it does not exist.
    pub namespace: String,
    /// Container image; by default the one released with this version.
    pub image: Option<String>,
    /// Version that the objects are labelled with.
    pub version: String,
    /// How long [`install`] waits for the manager to be ready.
    pub patience: std::time::Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            image: None,
            version: tpx_api::VERSION.to_owned(),
            patience: std::time::Duration::from_secs(180),
        }
    }
}

impl Options {
    /// The image that is used.
    #[must_use]
    pub fn image(&self) -> String {
        self.image.clone().unwrap_or_else(|| format!("ghcr.io/tpx-dev/tpx-manager:{}", self.version))
    }
}

/// What [`install`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Version of the manager that is ready now.
    pub version: String,
    /// Its namespace.
    pub namespace: String,
    /// Its image.
    pub image: String,
    /// The objects that were made or applied, as `Kind name`.
    pub objects: Vec<String>,
}

/// What [`uninstall`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The objects that were deleted, as `Kind name`. Empty: there was nothing.
    pub objects: Vec<String>,
    /// Objects of the same names that were left alone.
    pub kept: Vec<Kept>,
}

/// An object that [`uninstall`] left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The object, as `Kind name`.
    pub object: String,
    /// Why, as the end of a sentence.
    pub because: String,
}
