//! A document as a tree whose every node knows where it stands: what a struct cannot tell about a key that it does not
//! have.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::{ConfigError, Origin, Place};

/// A node, with children that carry their places.
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    /// What it is, for an error message.
    pub(super) fn kind(&self) -> String {
        match self {
            Node::Null => "nothing".into(),
            Node::Bool(value) => value.to_string(),
            Node::Number(text) => format!("the number {text}"),
            Node::Text(text) => format!("{text:?}"),
            Node::List(_) => "a list".into(),
            Node::Map(_) => "a mapping".into(),
        }
    }
}

/// Reads one YAML document; JSON is one too.
///
/// # Errors
/// When it is no YAML.
pub(super) fn parse(text: &str, origin: &Origin) -> Result<Spanned<Node>, ConfigError> {
    serde_saphyr::from_str(text).map_err(|e| {
        let plain = e.without_snippet();
        let at = plain.location().map_or_else(|| origin.clone(), |location| origin.at(place(&location)));
        let mut what = plain.render().lines().next().unwrap_or_default().to_owned();
        // The place is told in front, in one form for all errors.
        if let Some(end) = what.rfind(" at line ") {
            what.truncate(end);
        }
        ConfigError::new(at, "", format!("this is no YAML: {what}"), "check quotes, brackets and indentation there")
    })
}

/// Where a node stands; `None` where nobody knows.
pub(super) fn place(location: &serde_saphyr::Location) -> Option<Place> {
    let number = |n: u64| u32::try_from(n).ok().filter(|n| *n > 0);
    Some(Place { line: number(location.line())?, column: number(location.column())? })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}
