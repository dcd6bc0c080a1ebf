//! Socket marks (SO_MARK, socket(7)), as bits inside a mask of ours.
//!
//! The mask leaves the bits of others alone: wg-quick compares the whole mark with 0xca6c, Tailscale owns 0xff0000,
//! kube-proxy 0x4000 and 0x8000, Cilium 0x0f00. An application's own bits stay as they are.

use crate::slot::Slot;

/// The bits that belong to tpx.
pub const MASK: u32 = 0xff00_0000;
/// The bits that the policy rule compares: both marks of a slot look alike under it.
pub const RULE_MASK: u32 = 0xfe00_0000;

const BASE: u32 = 0x7000_0000;
const AGAIN: u32 = 0x0100_0000;

/// A steered socket: "route me through the datapath's table".
#[inline(always)]
#[must_use]
pub const fn steer(slot: Slot) -> u32 {
    BASE | (slot.index() << 25)
}

/// A packet that the daemon sends: a held SYN on its second trip, or an answer to one.
#[inline(always)]
#[must_use]
pub const fn reinject(slot: Slot) -> u32 {
    steer(slot) | AGAIN
}

/// `mark` with tpx's bits replaced by `ours` (0 removes them).
#[inline(always)]
#[must_use]
pub const fn with(mark: u32, ours: u32) -> u32 {
    (mark & !MASK) | (ours & MASK)
}

/// Whether tpx's bits of `mark` are `ours`.
#[inline(always)]
#[must_use]
pub const fn is(mark: u32, ours: u32) -> bool {
    mark & MASK == ours
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn others_bits_are_left_alone() {
        for foreign in [0xca6c, 0x00ff_0000, 0x4000, 0x8000, 0x0f00] {
            assert_eq!(MASK & foreign, 0, "{foreign:#x}");
        }
        // Mullvad's "mole", compared as a whole: it must not look like one of ours.
        for slot in Slot::all() {
            assert_ne!(0x6d6f_6c65 & RULE_MASK, steer(slot));
        }
    }

    #[test]
    fn the_rule_sees_both_marks_of_its_slot_only() {
        for a in Slot::all() {
            assert_eq!(steer(a) & RULE_MASK, steer(a));
            assert_eq!(reinject(a) & RULE_MASK, steer(a));
            assert!(!is(reinject(a), steer(a)));
            for b in Slot::all().filter(|b| *b != a) {
                assert_ne!(reinject(b) & RULE_MASK, steer(a));
            }
        }
    }

    proptest! {
        #[test]
        fn foreign_bits_survive(mark: u32, i in 0..Slot::COUNT) {
            let ours = steer(Slot::new(i).unwrap());
            prop_assert_eq!(with(mark, ours) & !MASK, mark & !MASK);
            prop_assert!(is(with(mark, ours), ours));
            prop_assert_eq!(with(with(mark, ours), 0), mark & !MASK);
        }
    }
}
