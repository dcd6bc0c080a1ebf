//! The keys: each with its type, its default, and one place where it is named.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::{
    ConfigError, Datapath, DnsName, Limit, LogLevel, Mapping, Origin, Setting, Shown,
    tree::{self, Node, place},
    value::{Value, unknown},
};
use crate::{
    devices::DevicePattern,
    policy::{DenyRule, DenyWith},
    subnets::{RoutingPolicy, VnatSelector},
};

/// A list, each item of which knows where it stands.
pub type List<T> = Vec<Setting<T>>;

macro_rules! settings {
    ($( $(#[$doc:meta])* $field:ident: $type:ty = $key:literal, $default:expr; )+) => {
        /// One layer: what one source sets. An explicit `false` or empty list is a value; a key that is not there is not.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Partial {
            $( $(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<Setting<$type>>, )+
        }

        /// The whole configuration: all layers merged over the defaults.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Config {
            $( $(#[$doc])* pub $field: Setting<$type>, )+
        }

        impl Partial {
            /// The paths of all keys.
            pub const KEYS: &'static [&'static str] = &[$($key),+];

            /// This layer over a weaker one: each key's whole value comes from the stronger layer that sets it.
            #[must_use]
            pub fn over(self, weaker: Self) -> Self {
                Self { $( $field: self.$field.or(weaker.$field), )+ }
            }

            fn read(&mut self, key: &str, node: &Spanned<Node>, origin: &Origin) -> Result<(), ConfigError> {
                let at = origin.at(place(&node.referenced));
                match key {
                    $( $key => self.$field = Some(Setting::new(<$type as Value>::read(node, key, origin)?, at)), )+
                    other => unreachable!("{other} is in KEYS"),
                }
                Ok(())
            }

            /// What this layer sets, in the order of the keys.
            #[must_use]
            pub fn rows(&self) -> Vec<Row> {
                let mut rows = Vec::new();
                $( if let Some(setting) = &self.$field { rows.push(row($key, setting)); } )+
                rows
            }
        }

        impl From<Partial> for Config {
            fn from(layers: Partial) -> Self {
                Self {
                    $( $field: layers.$field.unwrap_or_else(|| Setting::new($default, Origin::default_value())), )+
                }
            }
        }

        impl Config {
            /// All keys with their values, in the order of the keys.
            #[must_use]
            pub fn rows(&self) -> Vec<Row> {
                vec![$( row($key, &self.$field) ),+]
            }
        }
    };
}

settings! {
    /// Which road carries flows.
    datapath: Datapath = "datapath", Datapath::Auto;
    /// Where virtual addresses come from: at most one range of each family.
    virtual_subnet: List<IpNet> = "routing.virtualSubnet", default_virtual_subnets();
    /// What is behind virtual addresses, conflict or not.
    vnat: List<VnatSelector> = "routing.vnat", Vec::new();
    /// Whether a subnet in conflict moves behind virtual addresses by itself.
    auto_resolve_conflicts: bool = "routing.autoResolveConflicts", true;
    /// Where the cluster wins over the host's routes.
    allow_conflicting_subnets: List<IpNet> = "routing.allowConflictingSubnets", Vec::new();
    /// Further subnets that are reached through the cluster.
    also_proxy_subnets: List<IpNet> = "routing.alsoProxySubnets", Vec::new();
    /// Subnets that never enter the tunnel.
    never_proxy_subnets: List<IpNet> = "routing.neverProxySubnets", Vec::new();
    /// What must not be reached.
    deny: List<DenyRule> = "policy.deny", Vec::new();
    /// What who is denied hears.
    deny_with: DenyWith = "policy.denyWith", DenyWith::Access;
    /// Whether containers on this machine see the cluster.
    containers: bool = "containers.enabled", true;
    /// The bridges that they sit behind.
    container_devices: List<DevicePattern> = "containers.devices", usual_container_devices();
    /// Ends of names that are asked in the cluster.
    include_suffixes: List<DnsName> = "dns.includeSuffixes", Vec::new();
    /// Ends of names that are never asked in the cluster.
    exclude_suffixes: List<DnsName> = "dns.excludeSuffixes", default_exclude_suffixes();
    /// Names that are never asked in the cluster.
    excludes: List<DnsName> = "dns.excludes", Vec::new();
    /// Names that stand for others.
    mappings: List<Mapping> = "dns.mappings", Vec::new();
    /// How long the cluster may take to answer a name.
    lookup_timeout: Limit = "dns.lookupTimeout", Limit(Duration::from_secs(4));
    /// What the user daemon logs.
    log_user_daemon: LogLevel = "logLevels.userDaemon", LogLevel::Info;
    /// What the privileged daemon logs.
    log_root_daemon: LogLevel = "logLevels.rootDaemon", LogLevel::Info;
    /// What the command line logs.
    log_cli: LogLevel = "logLevels.cli", LogLevel::Warn;
}

/// A key, its value and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The key's path.
    pub key: String,
    /// The value.
    pub value: Shown,
    /// Where it comes from.
    pub origin: Origin,
}

fn row<T: Value>(key: &str, setting: &Setting<T>) -> Row {
    Row { key: key.into(), value: setting.value.shown(), origin: setting.origin.clone() }
}

impl Partial {
    /// Reads a layer from YAML or JSON text; an empty text sets nothing.
    ///
    /// # Errors
    /// The first [`ConfigError`] in the order of the text.
    pub fn parse(text: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        let document = tree::parse(text, origin)?;
        layer.branch("", &document, origin)?;
        layer.check()?;
        Ok(layer)
    }

    /// Sets `key` from the words of a flag, which may hold several with commas.
    ///
    /// # Errors
    /// When one of them is no such value. A key that does not exist is a mistake of the caller, and ignored.
    pub fn set(&mut self, key: &str, words: &[String], origin: &Origin) -> Result<(), ConfigError> {
        let word = |text: &str| {
            let nowhere = serde_saphyr::Location::UNKNOWN;
            Spanned::new(Node::Text(text.trim().to_owned()), nowhere, nowhere)
        };
        let mut words: Vec<_> = words.iter().flat_map(|word| word.split(',')).map(word).collect();
        let node = match words.len() {
            0 => return Ok(()),
            1 => words.remove(0),
            _ => word_list(words),
        };
        if Self::KEYS.contains(&key) { self.read(key, &node, origin) } else { Ok(()) }
    }

    fn branch(&mut self, path: &str, node: &Spanned<Node>, origin: &Origin) -> Result<(), ConfigError> {
        let entries = match &node.value {
            Node::Map(entries) => entries,
            Node::Null => return Ok(()),
            other => {
                let at = origin.at(place(&node.referenced));
                let what = format!("{} where a mapping belongs", other.kind());
                return Err(ConfigError::new(at, path, what, format!("known here: {}", below(path).join(", "))));
            }
        };
        for (key, value) in entries {
            let full = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
            if Self::KEYS.contains(&full.as_str()) {
                self.read(&full, value, origin)?;
            } else if below(path).contains(&key.value.as_str()) {
                self.branch(&full, value, origin)?;
            } else {
                return Err(unknown_key(key, path, origin));
            }
        }
        Ok(())
    }
}

fn word_list(words: Vec<Spanned<Node>>) -> Spanned<Node> {
    let nowhere = serde_saphyr::Location::UNKNOWN;
    Spanned::new(Node::List(words), nowhere, nowhere)
}

/// The keys directly below `path`.
fn below(path: &str) -> Vec<&'static str> {
    let mut keys = Vec::new();
    for key in Partial::KEYS {
        let rest = if path.is_empty() { Some(*key) } else { key.strip_prefix(path).and_then(|k| k.strip_prefix('.')) };
        if let Some(next) = rest.and_then(|rest| rest.split('.').next())
            && !keys.contains(&next)
        {
            keys.push(next);
        }
    }
    keys
}

/// A key may also be right, but in the wrong place: `virtualSubnet` without `routing`.
fn unknown_key(key: &Spanned<String>, path: &str, origin: &Origin) -> ConfigError {
    let mut error = unknown(key, path, &below(path), origin);
    let elsewhere = Partial::KEYS.iter().find(|full| full.rsplit('.').next() == Some(key.value.as_str()));
    if let Some(full) = elsewhere {
        error.next = format!("did you mean {full}?");
    }
    error
}

fn default_virtual_subnets() -> List<IpNet> {
    let usual = RoutingPolicy::here();
    [usual.virtual4.into(), usual.virtual6.into()]
        .into_iter()
        .map(|net| Setting::new(net, Origin::default_value()))
        .collect()
}

fn usual_container_devices() -> List<DevicePattern> {
    DevicePattern::usual().into_iter().map(|pattern| Setting::new(pattern, Origin::default_value())).collect()
}

fn default_exclude_suffixes() -> List<DnsName> {
    use super::value::Scalar as _;
    let suffix = |text: &&str| DnsName::parse(text).ok();
    let names = crate::dns::PolicyConfig::DEFAULT_EXCLUDE_SUFFIXES.iter().filter_map(suffix);
    names.map(|name| Setting::new(name, Origin::default_value())).collect()
}
