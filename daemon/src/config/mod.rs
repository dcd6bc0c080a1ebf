//! Where configuration is read from: the user's file and kubeconfig. What it means is `tpx_core::config`'s business.

mod file;
mod kubeconfig;

use tpx_core::config::{Config, ConfigError, Origin, Partial};

pub(crate) use file::UserFile;
pub(crate) use kubeconfig::extension;

use crate::failure::{Failure, Kind};

/// All layers merged: what the command line sent over kubeconfig's extension over what the cluster pushes.
///
/// # Errors
/// When what the cluster pushes is no configuration, or the layers do not fit together; it names the places.
pub(crate) fn merged(asked: Partial, kubeconfig: Partial, pushed: Option<&str>) -> Result<Config, Failure> {
    let cluster = pushed.map(|text| Partial::parse(text, &Origin::cluster())).transpose()?.unwrap_or_default();
    let config = Config::from(asked.over(kubeconfig).over(cluster));
    config.check()?;
    Ok(config)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::new(Kind::Usage, error.to_string(), error.next)
    }
}
