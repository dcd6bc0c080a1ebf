//! Looking at a directory of the cgroup2 tree (cgroups(7)): who is in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tpx_datapath::linux::cgroup::is_populated;

/// Most directories that are looked into.
const MOST: usize = 100_000;

/// Whether no process is in the directory or below it; also when it is gone.
pub(crate) fn is_empty(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).map_or(true, |events| !is_populated(&events))
}

/// The processes in the directory and below it.
pub(crate) fn processes(cgroup: &Path) -> Vec<u32> {
    let of = |directory: PathBuf| fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let directories = std::iter::once(cgroup.to_owned()).chain(below(cgroup));
    let lists: Vec<String> = directories.map(of).collect();
    lists.iter().flat_map(|list| list.lines()).filter_map(|pid| pid.parse().ok()).collect()
}

/// The directories below, in no order. What vanishes meanwhile is left out.
pub(crate) fn below(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![cgroup.to_owned()];
    while let Some(directory) = open.pop()
        && found.len() < MOST
    {
        let inside = fs::read_dir(&directory).into_iter().flatten().flatten();
        let directories = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for directory in directories.map(|entry| entry.path()) {
            open.push(directory.clone());
            found.push(directory);
        }
    }
    found
}

/// The directory of a process below the tree's root, from /proc/PID/cgroup; begins with `/`.
pub(crate) fn of(pid: u32) -> io::Result<Option<String>> {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).map(|text| v2(&text))
}

/// The innermost of the scopes around a process's directory. A scope without a directory is around all.
pub(crate) fn innermost<'a, T>(
    process: Option<&Path>,
    scopes: impl Iterator<Item = (T, Option<&'a Path>)>,
) -> Option<T> {
    let inside = |scope: &Path| process.is_some_and(|process| process.starts_with(scope));
    let around = scopes.filter(|(_, scope)| scope.is_none_or(inside));
    around.max_by_key(|(_, scope)| scope.map_or(0, |scope| scope.components().count())).map(|(name, _)| name)
}

/// The line of the cgroup2 tree.
fn v2(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_scope_counts() {
        let path = |text: &'static str| Some(Path::new(text));
        let scopes = [("all", None), ("outer", path("/c/a")), ("inner", path("/c/a/b")), ("other", path("/c/d"))];
        let found = |process| innermost(path(process), scopes.into_iter());
        assert_eq!(found("/c/a/b/x"), Some("inner"));
        assert_eq!(found("/c/a/b"), Some("inner"));
        assert_eq!(found("/c/a/bc"), Some("outer"));
        assert_eq!(found("/c"), Some("all"));
        assert_eq!(innermost(None, scopes.into_iter()), Some("all"));
        assert_eq!(innermost(path("/c"), scopes[1..].iter().copied()), None);
    }

    #[test]
    fn the_files_of_a_cgroup_are_read() {
        assert_eq!(v2("1:cpu:/x\n0::/user.slice\n").as_deref(), Some("/user.slice"));
        assert_eq!(v2("1:cpu:/x\n"), None);
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("a/b")).unwrap();
        fs::write(tree.path().join("cgroup.procs"), "1\n").unwrap();
        fs::write(tree.path().join("a/b/cgroup.procs"), "22\n333\n").unwrap();
        let mut pids = processes(tree.path());
        pids.sort_unstable();
        assert_eq!(pids, [1, 22, 333]);
        assert!(is_empty(tree.path()));
        fs::write(tree.path().join("cgroup.events"), "populated 1\n").unwrap();
        assert!(!is_empty(tree.path()));
    }
}
