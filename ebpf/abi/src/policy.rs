//! What the programs refuse.

/// The one value of [`maps::POLICY`](crate::maps::POLICY).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// What a denied call ends with (errno of errno.h); 0: nothing is denied, and nothing is looked up.
    pub errno: u32,
    /// Not zero: ports are denied as well.
    pub ports: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!((size_of::<Policy>(), align_of::<Policy>()), (8, 4));
    }
}
