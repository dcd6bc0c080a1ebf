//! Socket marks (SO_MARK, socket(7)), as bits inside a mask of ours.
//!
//! The mask leaves the bits of others alone: wg-quick compares the whole mark with 0xca6c, Tailscale owns 0xff0000,
//! kube-proxy 0x4000 and 0x8000, Cilium 0x0f00. An application's own bits stay as they are.

use crate::slot::Slot;

/// The bits that belong to tpx.
pub const MASK: u32 = 0xff00_0000;
/// The bits that the policy rule compares: both marks of a slot look alike under it.
pub const RULE_MASK: u32 = 0xfe00_0000;

/// What tells steered sockets from members and from marks of others.
const FAMILY: u32 = 0xf000_0000;
const BASE: u32 = 0x7000_0000;
const MEMBER: u32 = 0x5000_0000;
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

/// A socket of a process tree: what is not steered is the floor's, and that of no other slot.
#[inline(always)]
#[must_use]
pub const fn member(slot: Slot) -> u32 {
    MEMBER | (slot.index() << 25)
}

/// Whether no slot has marked it.
#[inline(always)]
#[must_use]
pub const fn is_free(mark: u32) -> bool {
    mark & FAMILY != BASE && mark & FAMILY != MEMBER
}

/// Whether the programs of `slot` leave a socket with this mark alone, because another slot's have marked it: programs
/// of an inner scope run before those of the scopes around it. All scopes are inside the workstation's, so what that has
/// marked is another slot's to mark anew; what a daemon has marked to send from is nobody's.
#[inline(always)]
#[must_use]
pub const fn is_others(mark: u32, slot: Slot) -> bool {
    !is_free(mark) && mark & RULE_MASK & !FAMILY != slot.index() << 25 && !is(mark, steer(Slot::FIRST))
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
            assert_ne!(0x6d6f_6c65 & RULE_MASK, member(slot));
        }
        assert!([0, 0xca6c, 0x00ff_0000, 0x4000, 0x8000, 0x0f00, 0x6d6f_6c65].into_iter().all(is_free));
    }

    #[test]
    fn members_are_told_from_everything_else() {
        for a in Slot::all() {
            assert_eq!(member(a) & RULE_MASK, member(a));
            assert!(!is_free(member(a)) && !is_free(steer(a)) && !is_free(reinject(a)));
            for b in Slot::all() {
                assert_ne!(member(a) & RULE_MASK, steer(b));
                assert_ne!(member(a) & RULE_MASK, reinject(b) & RULE_MASK);
                assert_eq!(member(a) == member(b), a == b);
            }
        }
    }

    #[test]
    fn who_leaves_what_alone() {
        let [first, tree, other] = [Slot::FIRST, Slot::masked(1), Slot::masked(2)];
        for ours in [0, 0xca6c, 0x6d6f_6c65, member(tree), steer(tree), reinject(tree), steer(first)] {
            assert!(!is_others(ours, tree), "{ours:#x}");
        }
        for others in [member(other), steer(other), reinject(other), reinject(first), member(other) | 0xca6c] {
            assert!(is_others(others, tree), "{others:#x}");
        }
        for inner in [member(tree), steer(tree), reinject(tree)] {
            assert!(is_others(inner, first), "{inner:#x}");
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
            let slot = Slot::new(i).unwrap();
            for ours in [steer(slot), member(slot)] {
                prop_assert_eq!(with(mark, ours) & !MASK, mark & !MASK);
                prop_assert!(is(with(mark, ours), ours));
                prop_assert_eq!(with(with(mark, ours), 0), mark & !MASK);
            }
        }
    }
}
