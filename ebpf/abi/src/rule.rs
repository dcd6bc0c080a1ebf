//! What happens to connections into a subnet: the value of the LPM tries.

/// What a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Action {
    /// Through the tunnel.
    Steer = 1,
    /// Outside the tunnel, although a wider rule steers.
    Except = 2,
}

/// A rule as the maps hold it; the most specific prefix wins.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule(u32);

impl Rule {
    /// The rule for `action`.
    #[must_use]
    pub const fn new(action: Action) -> Self {
        Self(action as u32)
    }

    /// What it asks for; `None` for a value of another version.
    #[must_use]
    pub const fn action(self) -> Option<Action> {
        match self.0 {
            1 => Some(Action::Steer),
            2 => Some(Action::Except),
            _ => None,
        }
    }

    /// Whether connections go through the tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn steers(self) -> bool {
        self.0 == Action::Steer as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_round_trip() {
        assert_eq!((size_of::<Rule>(), align_of::<Rule>()), (4, 4));
        assert_eq!(Rule::new(Action::Steer).action(), Some(Action::Steer));
        assert_eq!(Rule::new(Action::Except).action(), Some(Action::Except));
        assert_eq!(Rule(9).action(), None);
        assert!(Rule::new(Action::Steer).steers());
        assert!(!Rule::new(Action::Except).steers());
    }
}
