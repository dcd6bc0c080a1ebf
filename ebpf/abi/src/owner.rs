//! Whose a connection is.

/// What the kernel noted in `connect()`. Not the process's name: reading it takes CAP_PERFMON, and while the SYN is held
/// /proc has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The process (its thread group).
    pub pid: u32,
    /// The user.
    pub uid: u32,
}

/// How the programs know processes, as the loader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Pids {
    /// Not at all: nothing is noted.
    Off = 0,
    /// By the numbers of the initial PID namespace.
    Initial = 1,
    /// By the numbers of the namespace that the loader names; processes of other ones are not noted. Linux 6.10.
    Namespace = 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!((size_of::<Owner>(), align_of::<Owner>()), (8, 4));
    }
}
