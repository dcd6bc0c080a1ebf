//! What a user writes to say whose processes see the cluster, and what it means on a machine.

use std::{fmt, path::PathBuf, str::FromStr};

/// The value of `--scope`. Those in the middle are directories of the cgroup2 tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeSelector {
    /// `workstation`: every process.
    Workstation,
    /// `cgroup:PATH`: a directory, absolute or below the tree's root.
    Cgroup(PathBuf),
    /// `unit:NAME`: a service or scope of systemd's, its suffix optional.
    Unit(String),
    /// `user:NAME`: all that a user runs, by name or by id.
    User(String),
    /// `container:NAME`: a container behind a bridge of this machine, by name or id.
    Container(String),
}

/// What is no [`ScopeSelector`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scope: write workstation, cgroup:PATH, unit:NAME, user:NAME or container:NAME")]
pub struct NoScope(String);

impl FromStr for ScopeSelector {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        if text == "workstation" {
            return Ok(Self::Workstation);
        }
        let no_scope = || NoScope(text.to_owned());
        let (kind, value) = text.split_once(':').ok_or_else(no_scope)?;
        // One name, not a path: what is looked up is compared with names of directories.
        let is_name = !value.is_empty() && !value.contains('/') && value != "." && value != "..";
        match kind {
            "cgroup" if !value.is_empty() => Ok(Self::Cgroup(value.into())),
            "unit" if is_name => Ok(Self::Unit(value.to_owned())),
            "user" if is_name => Ok(Self::User(value.to_owned())),
            // A runtime must not take it for a flag.
            "container" if is_name && !value.starts_with('-') => Ok(Self::Container(value.to_owned())),
            _ => Err(no_scope()),
        }
    }
}

impl fmt::Display for ScopeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workstation => f.write_str("workstation"),
            Self::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
            Self::Unit(name) => write!(f, "unit:{name}"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}

/// Whether a directory called `directory` is the unit `asked`: that very name, or a service or scope of it.
#[must_use]
pub fn is_unit(directory: &str, asked: &str) -> bool {
    match directory.strip_prefix(asked) {
        Some(suffix) => matches!(suffix, "" | ".service" | ".scope"),
        None => false,
    }
}

/// The directory of all that a user runs, below the tree's root, as systemd-logind lays it out.
#[must_use]
pub fn user_slice(uid: u32) -> PathBuf {
    format!("user.slice/user-{uid}.slice").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_what_they_say() {
        for text in [
            "workstation",
            "cgroup:/sys/fs/cgroup/a b",
            "cgroup:a/b",
            "unit:docker.service",
            "user:dev",
            "container:db-1",
        ] {
            assert_eq!(text.parse::<ScopeSelector>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "cgroup",
            "cgroup:",
            "unit:",
            "unit:a/b",
            "user:..",
            "user:",
            "pod:x",
            "Workstation",
            "container:",
            "container:-f",
        ] {
            let said = text.parse::<ScopeSelector>().unwrap_err().to_string();
            assert!(said.contains(&format!("{text:?}")) && said.contains("unit:NAME"), "{said}");
        }
    }

    #[test]
    fn a_units_suffix_may_be_left_out() {
        for name in ["docker", "docker.service", "docker.scope"] {
            assert!(is_unit(name, "docker"), "{name}");
        }
        for name in ["docker.socket", "docker.service.d", "dockerd", "dock", ""] {
            assert!(!is_unit(name, "docker"), "{name}");
        }
        assert!(is_unit("docker.service", "docker.service"));
    }

    #[test]
    fn users_have_slices() {
        assert_eq!(user_slice(1000), PathBuf::from("user.slice/user-1000.slice"));
    }
}
