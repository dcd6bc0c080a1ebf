//! What happens to connections into a subnet: the value of the LPM tries.

/// What a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Action {
    /// Through the tunnel.
    Steer = 1,
    /// Outside the tunnel, although a wider rule steers.
    Except = 2,
    /// Virtual addresses: through the tunnel, to the address behind.
    Virtual = 3,
    /// Cluster addresses behind virtual ones: new connections go where the host's routes lead, translated ones and those
    /// from before the subnet moved go through the tunnel.
    Hidden = 4,
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
            3 => Some(Action::Virtual),
            4 => Some(Action::Hidden),
            _ => None,
        }
    }

    /// Whether it is the rule for `action`.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, action: Action) -> bool {
        self.0 == action as u32
    }

    /// Whether packets that reach this host's own stack for such an address belong to the tunnel: those that were led
    /// here by a mark. Wider than what [`decide`](crate::decide()) steers, because of [`Action::Hidden`].
    #[inline(always)]
    #[must_use]
    pub const fn accepts(self) -> bool {
        self.is(Action::Steer) || self.is(Action::Virtual) || self.is(Action::Hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_round_trip() {
        assert_eq!((size_of::<Rule>(), align_of::<Rule>()), (4, 4));
        for action in [Action::Steer, Action::Except, Action::Virtual, Action::Hidden] {
            assert_eq!(Rule::new(action).action(), Some(action));
            assert!(Rule::new(action).is(action));
            assert_eq!(Rule::new(action).accepts(), action != Action::Except);
        }
        assert_eq!(Rule(9).action(), None);
        assert!(!Rule(9).accepts());
    }
}
