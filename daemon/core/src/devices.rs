//! Names of network devices with wildcards: which bridges containers sit behind.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tpx_ebpf_abi::slot::Slot;

/// A device's name, in which `*` stands for any characters and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DevicePattern(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DevicePatternError {
    /// The kernel gives no device such a name.
    #[error("{0:?} is no name of a network device: 1 to 15 letters, digits and the like, * and ?")]
    Malformed(String),
    /// Containers never sit there.
    #[error("{pattern:?} matches {device}, which is no bridge of containers")]
    Reserved {
        /// The pattern.
        pattern: String,
        /// What it matches.
        device: &'static str,
    },
}

impl DevicePattern {
    /// Longest name of a device (`IFNAMSIZ` of linux/if.h, less its end).
    const LONGEST: usize = 15;

    /// The bridges that Docker, Podman, containerd's CNI plugins and nerdctl, libvirt, LXD, Incus and LXC make. Docker names
    /// those of its networks by twelve digits; a bridge of a router (`br-lan`) is not meant.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        ["docker0", "br-????????????", "cni*", "podman*", "nerdctl*", "virbr*", "lxdbr*", "incusbr*", "lxcbr*"]
            .map(|pattern| Self(pattern.into()))
            .into()
    }

    /// Whether a device's name fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        fits(self.0.as_bytes(), name.as_bytes())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Both are short, so going back for each `*` costs little.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skip| fits(rest, &name[skip..])),
        (Some((b'?', rest)), Some((_, tail))) => fits(rest, tail),
        (Some((wanted, rest)), Some((is, tail))) => wanted == is && fits(rest, tail),
        _ => false,
    }
}

impl FromStr for DevicePattern {
    type Err = DevicePatternError;

    fn from_str(text: &str) -> Result<Self, DevicePatternError> {
        let fine = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
        // Several stars in a row mean no more than one, and would cost more.
        if text.is_empty() || text.len() > Self::LONGEST || !text.bytes().all(fine) || text.contains("**") {
            return Err(DevicePatternError::Malformed(text.into()));
        }
        let pattern = Self(text.into());
        match Slot::all().map(Slot::device).chain(["lo"]).find(|device| pattern.matches(device)) {
            Some(device) => Err(DevicePatternError::Reserved { pattern: pattern.0, device }),
            None => Ok(pattern),
        }
    }
}

impl TryFrom<String> for DevicePattern {
    type Error = DevicePatternError;

    fn try_from(text: String) -> Result<Self, DevicePatternError> {
        text.parse()
    }
}

impl From<DevicePattern> for String {
    fn from(pattern: DevicePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> DevicePattern {
        text.parse().unwrap()
    }

    #[test]
    fn wildcards() {
        for (text, fitting, others) in [
            ("docker0", vec!["docker0"], vec!["docker01", "docker", "Docker0"]),
            ("br-*", vec!["br-", "br-lan", "br-0123456789ab"], vec!["br0", "xbr-1"]),
            ("br-??", vec!["br-ab"], vec!["br-a", "br-abc"]),
            ("*br?x*", vec!["br0x", "virbr1x0"], vec!["brx", "br0y"]),
        ] {
            assert!(fitting.iter().all(|name| pattern(text).matches(name)), "{text}");
            assert!(!others.iter().any(|name| pattern(text).matches(name)), "{text}");
        }
    }

    #[test]
    fn the_usual_ones() {
        let usual = DevicePattern::usual();
        let served = |name: &str| usual.iter().any(|pattern| pattern.matches(name));
        for name in ["docker0", "br-3f2a9c1b77de", "cni0", "cni-podman0", "podman1", "virbr0", "lxdbr0", "incusbr0"] {
            assert!(served(name), "{name}");
        }
        for name in ["br-lan", "br0", "eth0", "wlan0", "veth1234", "lo", "tpx0", "docker_gwbridge"] {
            assert!(!served(name), "{name}");
        }
        assert!(usual.iter().all(|pattern| pattern.as_str().parse::<DevicePattern>().as_ref() == Ok(pattern)));
    }

    #[test]
    fn bad_ones_are_refused() {
        for text in ["", "a b", "a/b", "0123456789abcdef", "br**", "é", "eth0:1"] {
            assert_eq!(text.parse::<DevicePattern>(), Err(DevicePatternError::Malformed(text.into())), "{text}");
        }
        for (text, device) in [("*", "tpx0"), ("lo", "lo"), ("tpx?", "tpx0"), ("l*", "lo"), ("*7", "tpx7")] {
            let refused = text.parse::<DevicePattern>();
            assert_eq!(refused, Err(DevicePatternError::Reserved { pattern: text.into(), device }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_name_fits_itself_and_the_stars_around_it(name in "[a-z0-9-]{1,13}", cut in 0usize..13) {
            let cut = cut.min(name.len());
            for text in [name.clone(), format!("{}*", &name[..cut]), format!("*{}", &name[cut..])] {
                prop_assert!(fits(text.as_bytes(), name.as_bytes()), "{text}");
            }
        }
    }
}
