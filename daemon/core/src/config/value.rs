//! What the values of the configuration look like as text: each type reads itself and can be shown.

use std::{fmt, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::{
    ConfigError, Origin, Setting,
    suggest::nearest,
    tree::{Node, place},
};
use crate::{
    devices::{DevicePattern, DevicePatternError},
    dns::Name,
    policy::{DenyRule, DenyWith},
    subnets::{SelectorError, VnatSelector},
};

/// Why a text is no value: what is wrong, and what to do.
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) next: String,
}

fn problem<T>(what: impl Into<String>, next: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { what: what.into(), next: next.into() })
}

/// A value that is one word.
pub(super) trait Scalar: Sized {
    fn parse(text: &str) -> Result<Self, Problem>;
    fn shown(&self) -> Shown;
}

/// Any value: reads itself from a document.
pub(super) trait Value: Sized {
    fn read(node: &Spanned<Node>, key: &str, origin: &Origin) -> Result<Self, ConfigError>;
    fn shown(&self) -> Shown;
}

/// A value for people and programs, in the form that a configuration file has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Shown {
    /// `true` or `false`.
    Bool(bool),
    /// A word.
    Text(String),
    /// Words.
    List(Vec<String>),
    /// Names for names.
    Mappings(Vec<Mapping>),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, items: &[String]| match items {
            [] => f.write_str("none"),
            items => f.write_str(&items.join(", ")),
        };
        match self {
            Shown::Bool(value) => write!(f, "{value}"),
            Shown::Text(text) => f.write_str(text),
            Shown::List(items) => list(f, items),
            Shown::Mappings(items) => {
                list(f, &items.iter().map(|m| format!("{} -> {}", m.name, m.alias_for)).collect::<Vec<_>>())
            }
        }
    }
}

impl<T: Scalar> Value for T {
    fn read(node: &Spanned<Node>, key: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let at = origin.at(place(&node.referenced));
        match &node.value {
            Node::Text(text) | Node::Number(text) => {
                T::parse(text).map_err(|e| ConfigError::new(at, key, e.what, e.next))
            }
            Node::Bool(value) => T::parse(&value.to_string()).map_err(|e| ConfigError::new(at, key, e.what, e.next)),
            other => {
                Err(ConfigError::new(at, key, format!("{} where one value belongs", other.kind()), "write one value"))
            }
        }
    }

    fn shown(&self) -> Shown {
        Scalar::shown(self)
    }
}

/// A list; one value alone stands for a list of one.
impl<T: Value> Value for Vec<Setting<T>> {
    fn read(node: &Spanned<Node>, key: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let item =
            |node: &Spanned<Node>| Ok(Setting::new(T::read(node, key, origin)?, origin.at(place(&node.referenced))));
        match &node.value {
            Node::List(items) => items.iter().map(item).collect(),
            Node::Null => Err(ConfigError::new(
                origin.at(place(&node.referenced)),
                key,
                "has no value",
                "write [] for an empty list, or leave the key out",
            )),
            _ => Ok(vec![item(node)?]),
        }
    }

    fn shown(&self) -> Shown {
        let mut words = Vec::new();
        let mut mappings = Vec::new();
        for item in self {
            match item.value.shown() {
                Shown::Mappings(more) => mappings.extend(more),
                Shown::List(more) => words.extend(more),
                one => words.push(one.to_string()),
            }
        }
        if mappings.is_empty() { Shown::List(words) } else { Shown::Mappings(mappings) }
    }
}

impl Scalar for bool {
    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => problem(format!("{other:?} is neither true nor false"), "write true or false"),
        }
    }

    fn shown(&self) -> Shown {
        Shown::Bool(*self)
    }
}

impl Scalar for VnatSelector {
    fn parse(text: &str) -> Result<Self, Problem> {
        match text.trim().parse() {
            Ok(selector) => Ok(selector),
            Err(SelectorError::Unknown { text, suggestion }) => {
                let words = Self::SYMBOLS.map(|(word, _)| word).join(", ");
                let next = match suggestion {
                    Some(word) => format!("did you mean {word}?"),
                    None => "write a subnet as in 10.96.0.0/16, or one of these words".into(),
                };
                problem(format!("{text:?} is neither a subnet nor one of {words}"), next)
            }
            Err(SelectorError::Malformed(_) | SelectorError::HostBits(_)) => IpNet::parse(text).map(Self::Cidr),
        }
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Scalar for DenyRule {
    fn parse(text: &str) -> Result<Self, Problem> {
        text.trim().parse().or_else(|e| problem(format!("{e}"), "write namespace:shop, 10.96.0.0/16 or port:25"))
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Scalar for DenyWith {
    fn parse(text: &str) -> Result<Self, Problem> {
        match Self::ALL.iter().find(|(word, _)| *word == text.trim()) {
            Some((_, with)) => Ok(*with),
            None => problem(
                format!("{text:?} is neither access nor refused"),
                match nearest(text, Self::ALL.map(|(word, _)| word)) {
                    Some(word) => format!("did you mean {word}?"),
                    None => "access says \"permission denied\", refused says \"connection refused\"".into(),
                },
            ),
        }
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Scalar for IpNet {
    fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim();
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            let net = IpNet::from(address);
            return problem(format!("{text:?} has no prefix length"), format!("write {net} for this address alone"));
        }
        let Ok(net) = text.parse::<IpNet>() else {
            return problem(format!("{text:?} is no subnet"), "write it as 10.128.0.0/9 or fd00:1::/64");
        };
        if net != net.trunc() {
            return problem(format!("{text} has bits set behind its prefix"), format!("write {}", net.trunc()));
        }
        Ok(net)
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Scalar for DevicePattern {
    fn parse(text: &str) -> Result<Self, Problem> {
        text.trim().parse().map_err(|e: DevicePatternError| Problem {
            what: e.to_string(),
            next: "write a bridge's name, as in docker0 or \"br-*\"".into(),
        })
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

/// A name or the end of names, in lower case, without dots at its ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsName(String);

impl DnsName {
    /// The name itself.
    #[must_use]
    pub fn name(&self) -> Name {
        // It was one when it was read.
        self.0.parse().unwrap_or_default()
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for DnsName {
    fn parse(text: &str) -> Result<Self, Problem> {
        let hint = "write letters, digits, '-' and dots, as in \"example.com\"";
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !text.chars().all(fine) {
            return problem(format!("{text:?} is no DNS name"), hint);
        }
        match text.parse::<Name>() {
            Ok(name) if !name.is_empty() => Ok(Self(name.to_string())),
            Ok(_) => problem("an empty name matches everything", "name what you mean"),
            Err(e) => problem(format!("{text:?} is no DNS name: {e}"), hint),
        }
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.0.clone())
    }
}

/// A name that stands for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// What is asked.
    pub name: String,
    /// Whose records answer: a name, or an address.
    pub alias_for: String,
}

impl Value for Mapping {
    fn read(node: &Spanned<Node>, key: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let at = origin.at(place(&node.referenced));
        let hint = "write {name: shop.example, aliasFor: shop.prod}";
        let Node::Map(entries) = &node.value else {
            return Err(ConfigError::new(at, key, format!("{} where a mapping belongs", node.value.kind()), hint));
        };
        let (mut name, mut alias_for) = (None, None);
        for (field, value) in entries {
            let path = format!("{key}.{}", field.value);
            match field.value.as_str() {
                "name" => name = Some(DnsName::read(value, &path, origin)?.0),
                "aliasFor" => alias_for = Some(alias(value, &path, origin)?),
                _ => return Err(unknown(field, key, &["name", "aliasFor"], origin)),
            }
        }
        let missing = |field: &str| ConfigError::new(at.clone(), key, format!("{field} is missing"), hint);
        let name = name.ok_or_else(|| missing("name"))?;
        let alias_for = alias_for.ok_or_else(|| missing("aliasFor"))?;
        if name == alias_for {
            return Err(ConfigError::new(at, key, format!("{name} is mapped to itself"), "leave it out"));
        }
        Ok(Self { name, alias_for })
    }

    fn shown(&self) -> Shown {
        Shown::Mappings(vec![self.clone()])
    }
}

/// An address or a name.
fn alias(node: &Spanned<Node>, path: &str, origin: &Origin) -> Result<String, ConfigError> {
    match &node.value {
        Node::Text(text) if text.parse::<std::net::IpAddr>().is_ok() => Ok(text.clone()),
        _ => Ok(DnsName::read(node, path, origin)?.0),
    }
}

/// The error for a key that does not exist, in a mapping that has `keys`.
pub(super) fn unknown(key: &Spanned<String>, inside: &str, keys: &[&str], origin: &Origin) -> ConfigError {
    let path = if inside.is_empty() { key.value.clone() } else { format!("{inside}.{}", key.value) };
    let prefixed = |word: &str| if inside.is_empty() { word.to_owned() } else { format!("{inside}.{word}") };
    let next = match nearest(&key.value, keys.iter().copied()) {
        Some(word) => format!("did you mean {}?", prefixed(word)),
        None => format!("known here: {}", keys.join(", ")),
    };
    ConfigError::new(origin.at(place(&key.referenced)), &path, "unknown key", next)
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal: $( $(#[$word_doc:meta])* $variant:ident = $word:literal, )+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $( $(#[$word_doc])* $variant, )+ }

        impl $name {
            /// All words, in order.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word for it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Scalar for $name {
            fn parse(text: &str) -> Result<Self, Problem> {
                match text {
                    $( $word => Ok(Self::$variant), )+
                    other => problem(format!("{other:?} is no {}", $what), match nearest(other, Self::WORDS.iter().copied()) {
                        Some(word) => format!("did you mean {word}? (one of {})", Self::WORDS.join(", ")),
                        None => format!("choose one of {}", Self::WORDS.join(", ")),
                    }),
                }
            }

            fn shown(&self) -> Shown {
                Shown::Text(self.word().into())
            }
        }
    };
}

words! {
    /// How much a process logs.
    LogLevel, "log level":
    /// What failed.
    Error = "error",
    /// What may fail.
    Warn = "warn",
    /// What happens.
    Info = "info",
    /// How it happens.
    Debug = "debug",
    /// Everything.
    Trace = "trace",
}

words! {
    /// Which road the user wants.
    Datapath, "datapath":
    /// The best one that works here.
    Auto = "auto",
    /// The express lane, or an error.
    Ebpf = "ebpf",
    /// The TUN device alone.
    Tun = "tun",
}

/// How long something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit(pub Duration);

impl Limit {
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(600);
}

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// `1m30s`: numbers, each with its unit, biggest first.
impl Scalar for Limit {
    fn parse(text: &str) -> Result<Self, Problem> {
        let hint = "write a number with a unit, as in 500ms, 4s or 1m";
        let malformed = || problem(format!("{text:?} is no duration"), hint);
        let digits = |c: char| c.is_ascii_digit();
        if !text.is_empty() && text.chars().all(digits) {
            return problem(format!("{text} has no unit"), format!("write {text}s or {text}ms"));
        }
        let (mut rest, mut total, mut largest) = (text, 0u64, u64::MAX);
        while !rest.is_empty() {
            let number = rest.trim_start_matches(digits);
            let Ok(count) = rest[..rest.len() - number.len()].parse::<u64>() else { return malformed() };
            rest = number.trim_start_matches(|c: char| c.is_ascii_alphabetic());
            let unit = &number[..number.len() - rest.len()];
            let Some((_, size)) = UNITS.iter().find(|(name, size)| *name == unit && *size < largest) else {
                return malformed();
            };
            largest = *size;
            total = total.saturating_add(count.saturating_mul(*size));
        }
        let limit = Duration::from_millis(total);
        if text.is_empty() {
            return malformed();
        }
        if !(Self::SHORTEST..=Self::LONGEST).contains(&limit) {
            let (shortest, longest) = (Self(Self::SHORTEST), Self(Self::LONGEST));
            return problem(format!("{text} is out of range"), format!("choose from {shortest} to {longest}"));
        }
        Ok(Self(limit))
    }

    fn shown(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        for (unit, size) in UNITS.iter().rev() {
            if rest >= *size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}
