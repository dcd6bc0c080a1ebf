//! A domain name as the policy sees it: labels of any bytes, compared without case.
//!
//! Labels are bytes, not text: what is asked on the wire may hold dots, blanks or broken UTF-8 inside a label, and the
//! policy must judge it all the same. IDNA is left alone (names arrive in their ASCII form).

use std::{fmt, str::FromStr};

/// A domain name: labels from the leftmost to the top, ASCII letters in lower case (RFC 4343), no empty label.
///
/// At most 255 bytes on the wire and 63 a label (RFC 1035, 2.3.4). The root has no labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name {
    labels: Vec<Vec<u8>>,
}

/// Why something is not a domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A label of no bytes between two dots.
    #[error("a label is empty")]
    EmptyLabel,
    /// A label of more than 63 bytes.
    #[error("a label is longer than 63 bytes")]
    LongLabel,
    /// More than 255 bytes on the wire.
    #[error("the name is longer than 255 bytes")]
    LongName,
}

impl Name {
    /// The longest name on the wire, in bytes, its root label included.
    pub const MAX_WIRE: usize = 255;
    const MAX_LABEL: usize = 63;

    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    /// A name of these labels.
    ///
    /// # Errors
    /// A label or the name breaks a length limit.
    pub fn from_labels<L: AsRef<[u8]>>(labels: impl IntoIterator<Item = L>) -> Result<Self, NameError> {
        let labels: Vec<Vec<u8>> = labels.into_iter().map(|label| label.as_ref().to_ascii_lowercase()).collect();
        if labels.iter().any(Vec::is_empty) {
            return Err(NameError::EmptyLabel);
        }
        if labels.iter().any(|label| label.len() > Self::MAX_LABEL) {
            return Err(NameError::LongLabel);
        }
        let name = Self { labels };
        if name.wire_len() > Self::MAX_WIRE { Err(NameError::LongName) } else { Ok(name) }
    }

    /// The labels, leftmost first.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> + ExactSizeIterator {
        self.labels.iter().map(Vec::as_slice)
    }

    /// How many labels there are; none for the root.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether this is the root.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The label at `index`, counted from the top: 0 is the top-level domain.
    pub fn from_top(&self, index: usize) -> Option<&[u8]> {
        let at = self.labels.len().checked_sub(index + 1)?;
        self.labels.get(at).map(Vec::as_slice)
    }

    /// Whether the name is `suffix` or below it. Everything is below the root.
    pub fn is_under(&self, suffix: &Name) -> bool {
        self.labels.ends_with(&suffix.labels)
    }

    /// The labels left of `suffix`, or `None` when the name is not under it.
    pub fn relative_to(&self, suffix: &Name) -> Option<Name> {
        self.labels.strip_suffix(suffix.labels.as_slice()).map(|labels| Self { labels: labels.to_vec() })
    }

    /// `self` followed by `suffix`.
    ///
    /// # Errors
    /// [`NameError::LongName`] when the two do not fit into one name.
    pub fn join(&self, suffix: &Name) -> Result<Name, NameError> {
        Self::from_labels(self.labels.iter().chain(&suffix.labels))
    }

    /// `self` followed by one more label.
    ///
    /// # Errors
    /// As [`Name::from_labels`].
    pub fn child_of_label(&self, label: &str) -> Result<Name, NameError> {
        Self::from_labels(self.labels().chain([label.as_bytes()]))
    }

    /// The name in wire form (RFC 1035, 3.1), without compression.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(self.wire_len());
        for label in &self.labels {
            wire.push(label.len() as u8);
            wire.extend_from_slice(label);
        }
        wire.push(0);
        wire
    }

    fn wire_len(&self) -> usize {
        self.labels.iter().map(|label| label.len() + 1).sum::<usize>() + 1
    }
}

/// Reads dotted text; one dot at either end is let pass (`".com"`, `"cluster.local."`). Knows no escapes.
impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let text = text.strip_prefix('.').unwrap_or(text);
        if text.is_empty() { Ok(Self::root()) } else { Self::from_labels(text.split('.')) }
    }
}

/// Without the dot at the end (the root is `.`); bytes that are no host name characters as `\DDD` (RFC 1035, 5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labels.is_empty() {
            return f.write_str(".");
        }
        for (index, label) in self.labels.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*' | b'/') {
                    write!(f, "{}", byte as char)?;
                } else {
                    write!(f, "\\{byte:03}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn text_is_read_without_case_and_with_dots_at_the_ends() {
        assert_eq!(name("Web.EmojiVoto."), name("web.emojivoto"));
        assert_eq!(name(".com"), name("com"));
        assert_eq!(name("."), Name::root());
        assert_eq!(name(""), Name::root());
        assert_eq!("a..b".parse::<Name>(), Err(NameError::EmptyLabel));
        assert_eq!("x".repeat(64).parse::<Name>(), Err(NameError::LongLabel));
        assert_eq!(vec!["x".repeat(63); 4].join(".").parse::<Name>(), Err(NameError::LongName));
        assert!(vec!["x".repeat(61); 4].join(".").parse::<Name>().is_ok());
    }

    #[test]
    fn suffixes_are_whole_labels() {
        assert!(name("a.cluster.local").is_under(&name("cluster.local")));
        assert!(name("cluster.local").is_under(&name("cluster.local")));
        assert!(!name("mycluster.local").is_under(&name("cluster.local")));
        assert!(name("a").is_under(&Name::root()));
        assert_eq!(name("a.b.c").relative_to(&name("c")), Some(name("a.b")));
        assert_eq!(name("a.b.c").relative_to(&name("b")), None);
    }

    #[test]
    fn labels_count_from_the_top() {
        assert_eq!(name("a.b").from_top(0), Some(b"b".as_slice()));
        assert_eq!(name("a.b").from_top(1), Some(b"a".as_slice()));
        assert_eq!(name("a.b").from_top(2), None);
        assert_eq!(name("a.b").from_top(usize::MAX - 1), None);
    }

    #[test]
    fn odd_bytes_are_escaped_for_people_and_kept_on_the_wire() {
        let odd = Name::from_labels([b"a.b".as_slice(), b"\xff"]).unwrap();
        assert_eq!(odd.to_string(), "a\\046b.\\255");
        assert_eq!(odd.to_wire(), b"\x03a.b\x01\xff\x00");
    }
}
