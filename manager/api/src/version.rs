//! Which laptops and managers can work together.

use std::fmt;

/// Two builds that cannot work together. Says both versions and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mismatch {
    client: String,
    manager: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, manager } = self;
        write!(f, "this tpx is version {client} and the cluster's traffic manager is version {manager}")
    }
}

impl Mismatch {
    /// What the user can do about it.
    #[must_use]
    pub fn next_step(&self) -> String {
        match (generation(&self.client), generation(&self.manager)) {
            (Some(client), Some(manager)) if client < manager => {
                format!("install tpx {} on this machine", self.manager)
            }
            _ => "bring the cluster to this version with `tpx manager install`".to_owned(),
        }
    }
}

/// Decides whether a laptop's build and a manager's build speak the same protocol: the same major version, and before
/// 1.0 also the same minor version. Pre-release and build parts do not count.
///
/// # Errors
/// [`Mismatch`], also when one of them is no semantic version.
pub fn compatible(client: &str, manager: &str) -> Result<(), Mismatch> {
    match (generation(client), generation(manager)) {
        (Some(a), Some(b)) if a == b => Ok(()),
        _ => Err(Mismatch { client: short(client), manager: short(manager) }),
    }
}

/// What has to be equal.
fn generation(version: &str) -> Option<(u64, u64)> {
    let core = version.strip_prefix('v').unwrap_or(version);
    let core = core.split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(|number| number.parse::<u64>().ok());
    let (major, minor, _patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if numbers.next().is_some() {
        return None;
    }
    Some((major, if major == 0 { minor } else { 0 }))
}

/// Foreign text goes into a message for people: printable and not endless.
fn short(version: &str) -> String {
    let text: String = version.chars().filter(char::is_ascii_graphic).take(40).collect();
    if text.is_empty() { "unknown".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_1_0_the_minor_version_counts() {
        for (client, manager) in [
            ("0.1.0", "0.1.0"),
            ("0.1.0", "0.1.9"),
            ("v0.1.0-rc.1", "0.1.2+abc"),
            ("1.0.0", "1.9.3"),
            (crate::VERSION, crate::VERSION),
        ] {
            assert_eq!(compatible(client, manager), Ok(()), "{client} {manager}");
        }
        for (client, manager) in
            [("0.1.0", "0.2.0"), ("0.2.0", "0.1.0"), ("1.0.0", "2.0.0"), ("0.1.0", "1.1.0"), ("0.1.0", ""), ("", "")]
        {
            assert!(compatible(client, manager).is_err(), "{client} {manager}");
        }
        for nonsense in ["1", "1.2", "1.2.3.4", "a.b.c", "-1.0.0", "99999999999999999999.0.0"] {
            assert!(compatible(nonsense, nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn the_older_side_is_to_be_brought_up() {
        let mismatch = compatible("0.2.0", "0.1.0").unwrap_err();
        let words = "this tpx is version 0.2.0 and the cluster's traffic manager is version 0.1.0";
        assert_eq!(mismatch.to_string(), words);
        assert!(mismatch.next_step().contains("tpx manager install"));
        assert_eq!(compatible("0.1.0", "0.2.0").unwrap_err().next_step(), "install tpx 0.2.0 on this machine");
        assert!(compatible("0.1.0", "\n\u{1b}[31m").unwrap_err().to_string().ends_with("version [31m"));
    }
}
