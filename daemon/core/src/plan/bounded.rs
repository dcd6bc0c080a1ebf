//! Lists that stop growing while they are read: what a message makes the privileged daemon allocate is bounded by what a
//! plan may hold, and not by the length of the message.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

/// At most `MAX` entries.
///
/// # Errors
/// At the first entry beyond that, before it is kept.
pub(super) fn list<'de, T, D, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

struct Bounded<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::custom(format_args!("more than {MAX} entries in a list")));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{Error, SeqDeserializer};

    use super::*;

    fn read(entries: usize) -> Result<Vec<u32>, Error> {
        list::<u32, _, 3>(SeqDeserializer::new((0..u32::MAX).take(entries)))
    }

    #[test]
    fn the_bound_is_the_last_that_passes() {
        assert_eq!(read(0), Ok(vec![]));
        assert_eq!(read(3), Ok(vec![0, 1, 2]));
        assert_eq!(read(4).unwrap_err().to_string(), "more than 3 entries in a list");
    }

    #[test]
    fn an_endless_list_ends() {
        assert!(read(usize::MAX).is_err());
    }
}
