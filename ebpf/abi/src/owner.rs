//! Whose a connection is.

/// What the kernel noted in `connect()`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The process (its thread group).
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// Name of the thread that called, filled up with zeros.
    pub comm: [u8; 16],
}

impl Owner {
    /// The name of the thread that called.
    #[must_use]
    pub fn thread_name(&self) -> &[u8] {
        self.comm.split(|byte| *byte == 0).next().unwrap_or_default()
    }
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
        assert_eq!((size_of::<Owner>(), align_of::<Owner>()), (24, 4));
    }

    #[test]
    fn names_end_at_the_first_zero_or_fill_the_field() {
        let named = |comm: &[u8; 16]| Owner { comm: *comm, ..Owner::default() };
        assert_eq!(named(b"curl\0\0\0\0\0\0\0\0\0\0\0\0").thread_name(), b"curl");
        assert_eq!(named(b"curl\0left-over\0\0").thread_name(), b"curl");
        assert_eq!(named(b"sixteen-letters!").thread_name(), b"sixteen-letters!");
        assert_eq!(Owner::default().thread_name(), b"");
    }
}
