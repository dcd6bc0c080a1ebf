//! What `--scope` means on this machine: which directory of the cgroup2 tree. Where a container is, the user daemon finds out,
//! because that changes.

use std::path::{Path, PathBuf};

use nix::unistd::User;
use tpx_core::{
    plan::Scope,
    scope::{ScopeSelector, is_unit, user_slice},
};

use crate::{
    cgroup,
    failure::{Failure, Kind},
};

/// The scope that is meant.
///
/// # Errors
/// When there is no such cgroup, unit or user, or there are several.
pub(crate) fn resolve(selector: &ScopeSelector) -> Result<Scope, Failure> {
    let root = tpx_datapath::linux::cgroup::root().map_err(|e| {
        Failure::new(
            Kind::Host,
            format!("cannot find the cgroup2 tree: {e}"),
            "mount it, or connect the whole workstation",
        )
    })?;
    match selector {
        ScopeSelector::Workstation => Ok(Scope::Workstation),
        ScopeSelector::Container(_) => Ok(Scope::Containers(Vec::new())),
        ScopeSelector::Cgroup(path) => directory(&root, path).map(Scope::Cgroup),
        ScopeSelector::Unit(name) => unit(&root, name).map(Scope::Cgroup),
        ScopeSelector::User(name) => slice(&root, name, uid(name)?).map(Scope::Cgroup),
    }
}

/// A directory as it is written: absolute, below the root, or as /proc/PID/cgroup has it.
fn directory(root: &Path, path: &Path) -> Result<PathBuf, Failure> {
    let below =
        if path.starts_with(root) { path.to_owned() } else { root.join(path.strip_prefix("/").unwrap_or(path)) };
    // The root has more names than one: dots lead to it as well.
    let (root, found) = (root.canonicalize(), below.canonicalize());
    match (root, found) {
        (Ok(root), Ok(found)) if found == root => Err(Failure::new(
            Kind::Usage,
            format!("{} is the root of the cgroup2 tree, which every process is in", path.display()),
            "give --scope workstation, of which there is one at a time",
        )),
        (Ok(root), Ok(found)) if found.starts_with(&root) && found.is_dir() => Ok(found),
        _ => {
            let what = format!("there is no cgroup {}", below.display());
            Err(Failure::new(Kind::Usage, what, "`systemd-cgls` and /proc/PID/cgroup show what there is"))
        }
    }
}

fn unit(root: &Path, name: &str) -> Result<PathBuf, Failure> {
    let called = |path: &PathBuf| path.file_name().and_then(|own| own.to_str()).is_some_and(|own| is_unit(own, name));
    let mut found: Vec<PathBuf> = cgroup::below(root).into_iter().filter(called).collect();
    found.sort();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(
            Kind::Usage,
            format!("no unit {name} runs: {} has no {name}, {name}.service or {name}.scope in it", root.display()),
            "see `systemctl list-units`, or give --scope cgroup:PATH",
        )),
        several => {
            let list: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let what = format!("unit:{name} could be any of {}", list.join(", "));
            Err(Failure::new(Kind::Usage, what, "choose one with --scope cgroup:PATH"))
        }
    }
}

fn uid(name: &str) -> Result<u32, Failure> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(Failure::new(Kind::Usage, format!("there is no user {name}"), "`getent passwd` lists users")),
        Err(e) => Err(Failure::internal(format!("cannot look for user {name}: {e}"))),
    }
}

fn slice(root: &Path, name: &str, uid: u32) -> Result<PathBuf, Failure> {
    let slice = root.join(user_slice(uid));
    if slice.is_dir() {
        return Ok(slice);
    }
    let what = format!("user {name} runs nothing: there is no {}", slice.display());
    Err(Failure::new(Kind::Usage, what, "systemd-logind makes it when the user logs in; or give --scope cgroup:PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found() {
        let tree = tempfile::tempdir().unwrap();
        let root = &tree.path().canonicalize().unwrap();
        for path in ["system.slice/db.service/sub", "user.slice/user-7.slice/app.slice/web.scope", "a/x", "b/x.service"]
        {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        assert_eq!(unit(root, "db").unwrap(), root.join("system.slice/db.service"));
        assert_eq!(unit(root, "web.scope").unwrap(), root.join("user.slice/user-7.slice/app.slice/web.scope"));
        assert!(unit(root, "nothing").unwrap_err().to_string().contains("nothing.service"));
        let several = unit(root, "x").unwrap_err().to_string();
        assert!(several.contains("a/x, ") && several.contains("b/x.service"), "{several}");
        assert_eq!(slice(root, "seven", 7).unwrap(), root.join("user.slice/user-7.slice"));
        assert!(slice(root, "eight", 8).unwrap_err().to_string().contains("user-8.slice"));
        for path in [root.join("a/x"), "a/x".into(), "/a/x".into()] {
            assert_eq!(directory(root, &path).unwrap(), root.join("a/x"));
        }
        assert!(directory(root, Path::new("a/y")).unwrap_err().what.ends_with("a/y"));
        for path in [root.to_owned(), "/".into(), ".".into(), "a/..".into(), root.join("a/x/../..")] {
            let refused = directory(root, &path).unwrap_err();
            assert!(refused.next.contains("--scope workstation"), "{path:?}: {refused}");
        }
        assert!(directory(root, Path::new("../..")).unwrap_err().what.starts_with("there is no cgroup"));
    }

    #[test]
    fn users_have_names_and_numbers() {
        assert_eq!((uid("0").unwrap(), uid("root").unwrap()), (0, 0));
        assert!(uid("no such user").unwrap_err().to_string().contains("getent"));
    }
}
