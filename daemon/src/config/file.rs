//! The user's own file, `config.yml`.

use std::{
    ffi::OsString,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use tpx_core::config::{Origin, Partial};

use crate::failure::{Failure, Kind};

/// Longer than anybody writes by hand.
const MAX_BYTES: u64 = 1 << 20;

/// The user's configuration file, whether it is there or not.
pub(crate) struct UserFile {
    /// Where it is, or would be; `None` when this user has no home.
    pub path: Option<PathBuf>,
    /// What it sets.
    pub layer: Partial,
}

impl UserFile {
    /// No file.
    pub(crate) fn nothing() -> Self {
        Self { path: None, layer: Partial::default() }
    }

    /// Reads the file that `given` names, else the one at its usual place, which may be missing.
    ///
    /// # Errors
    /// When it cannot be read, or says something that is no configuration; it names the place.
    pub(crate) fn load(given: Option<&Path>) -> Result<Self, Failure> {
        let usual = || usual_path(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
        let Some(path) = given.map(Path::to_path_buf).or_else(usual) else {
            return Ok(Self::nothing());
        };
        let layer = match read(&path) {
            Ok(text) => Partial::parse(&text, &Origin::file(&path.display().to_string()))?,
            Err(e) if given.is_none() && e.kind() == io::ErrorKind::NotFound => Partial::default(),
            Err(e) => return Err(unreadable(&path, &e, given.is_some())),
        };
        Ok(Self { path: Some(path), layer })
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB"));
    }
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error, given: bool) -> Failure {
    let next = if given {
        "name a readable file with --config or $TPX_CONFIG"
    } else {
        "make it readable, or name another file with --config"
    };
    Failure::new(Kind::Usage, format!("cannot read the configuration file {}: {error}", path.display()), next)
}

/// `$XDG_CONFIG_HOME/tpx/config.yml`, else `~/.config/tpx/config.yml` (XDG Base Directory Specification: a path that is
/// not absolute is ignored).
#[cfg(not(any(target_os = "macos", windows)))]
fn usual_path(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let xdg = env("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = xdg.or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")))?;
    Some(base.join("tpx").join("config.yml"))
}

/// `~/Library/Application Support/tpx/config.yml`.
#[cfg(target_os = "macos")]
fn usual_path(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(PathBuf::from(env("HOME")?).join("Library/Application Support/tpx/config.yml"))
}

/// `%APPDATA%\tpx\config.yml`.
#[cfg(windows)]
fn usual_path(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(PathBuf::from(env("APPDATA")?).join("tpx").join("config.yml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_usual_place_follows_xdg() {
        let place = |xdg: Option<&str>, home: Option<&str>| {
            let env = |name: &str| match name {
                "XDG_CONFIG_HOME" => xdg.map(OsString::from),
                "HOME" => home.map(OsString::from),
                _ => None,
            };
            usual_path(env).map(|path| path.display().to_string())
        };
        assert_eq!(place(Some("/x"), Some("/home/a")).as_deref(), Some("/x/tpx/config.yml"));
        assert_eq!(place(None, Some("/home/a")).as_deref(), Some("/home/a/.config/tpx/config.yml"));
        assert_eq!(place(Some("relative"), Some("/home/a")).as_deref(), Some("/home/a/.config/tpx/config.yml"));
        assert_eq!(place(None, None), None);
    }
}
