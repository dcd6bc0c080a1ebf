//! What `--vnat` takes: a subnet, or a word for some.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de};

use crate::config::nearest;

/// What should be behind virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VnatSelector {
    /// These addresses, whatever they are. No bits are set behind the prefix.
    Cidr(IpNet),
    /// All subnets of `--also-proxy`.
    Also,
    /// The cluster's service subnets.
    Service,
    /// The cluster's pod subnets.
    Pods,
    /// All of the above.
    All,
}

impl VnatSelector {
    /// The words, as they are written, and what they stand for.
    pub const SYMBOLS: [(&'static str, Self); 4] =
        [("also", Self::Also), ("service", Self::Service), ("pods", Self::Pods), ("all", Self::All)];
}

/// Why a text selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Neither a subnet nor one of the words.
    #[error("{}", unknown(.text, *.suggestion))]
    Unknown {
        /// What was written.
        text: String,
        /// The word it comes closest to.
        suggestion: Option<&'static str>,
    },
    /// It looks like a subnet and is none.
    #[error("{0:?} is no subnet: an address, a slash and the prefix's length are expected, as in 10.96.0.0/16")]
    Malformed(String),
    /// An address with bits behind the prefix.
    #[error("{0} has bits set behind its prefix; write {net}", net = .0.trunc())]
    HostBits(IpNet),
}

fn unknown(text: &str, suggestion: Option<&str>) -> String {
    let hint = suggestion.map(|word| format!(": did you mean `{word}`?")).unwrap_or_default();
    let words = VnatSelector::SYMBOLS.map(|(word, _)| word).join(", ");
    format!("{text:?} is neither a subnet nor one of {words}{hint}")
}

impl FromStr for VnatSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, symbol)) = Self::SYMBOLS.iter().find(|(word, _)| *word == text) {
            return Ok(*symbol);
        }
        if text.contains(['/', '.', ':']) {
            let net: IpNet = text.parse().map_err(|_| SelectorError::Malformed(text.to_owned()))?;
            return if net == net.trunc() { Ok(Self::Cidr(net)) } else { Err(SelectorError::HostBits(net)) };
        }
        Err(SelectorError::Unknown {
            text: text.to_owned(),
            suggestion: nearest(text, Self::SYMBOLS.map(|(word, _)| word)),
        })
    }
}

impl fmt::Display for VnatSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(net) => net.fmt(f),
            symbol => f.write_str(Self::SYMBOLS.iter().find(|(_, s)| s == symbol).map_or("", |(word, _)| word)),
        }
    }
}

impl Serialize for VnatSelector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VnatSelector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_subnets() {
        for text in ["also", "service", "pods", "all", "10.96.0.0/16", "fd00::/64"] {
            assert_eq!(text.parse::<VnatSelector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let said = |text: &str| text.parse::<VnatSelector>().unwrap_err().to_string();
        let words = "is neither a subnet nor one of also, service, pods, all";
        assert_eq!(said("services"), format!("\"services\" {words}: did you mean `service`?"));
        assert_eq!(said("pod"), format!("\"pod\" {words}: did you mean `pods`?"));
        assert_eq!(said("Svc"), format!("\"Svc\" {words}"));
        assert_eq!(said("ALL"), format!("\"ALL\" {words}: did you mean `all`?"));
        assert_eq!(said(""), format!("\"\" {words}"));
        assert!(said("10.96.0.0/33").contains("\"10.96.0.0/33\" is no subnet"));
        assert!(said("10.96.0.0").contains("is no subnet"));
        assert_eq!(said("10.96.0.1/16"), "10.96.0.1/16 has bits set behind its prefix; write 10.96.0.0/16");
    }
}
