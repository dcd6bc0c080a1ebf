//! What the programs count: the index into the per-CPU array [`maps::COUNTERS`](crate::maps::COUNTERS).

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All of them, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// Its name in output, snake_case and stable.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

counters! {
    /// Sockets marked at connect().
    Steered = "steered",
    /// Marks that the kernel refused.
    SteerFailed = "steer_failed",
    /// Marks taken off again because the socket connects elsewhere.
    Unmarked = "unmarked",
    /// Sockets let alone because they are the daemon's own.
    Bypassed = "bypassed",
    /// Sockets let alone because they live in another network namespace.
    ForeignNetns = "foreign_netns",
    /// Calls that the policy refused.
    Denied = "denied",
    /// Name server addresses exchanged on the way out.
    NamesAsked = "names_asked",
    /// Name server addresses put back on the way in.
    NamesAnswered = "names_answered",
    /// SYNs and connections handed to the listener.
    Assigned = "assigned",
    /// Assignments that the kernel refused.
    AssignFailed = "assign_failed",
    /// SYNs held and announced to the daemon.
    SynsHeld = "syns_held",
    /// Retransmissions of held SYNs.
    SynsRepeated = "syns_repeated",
    /// SYNs let through after a verdict, or sent by the daemon.
    SynsPassed = "syns_passed",
    /// SYNs dropped without an announcement because map or ring buffer were full; a retransmission tries again.
    SynsLost = "syns_lost",
    /// SYNs dropped because their destination is not steered.
    SynsStray = "syns_stray",
    /// SYNs announced without their payload because it was too long.
    SynsCut = "syns_cut",
    /// First data dropped because the kernel was just making its socket; it is sent again.
    Crossed = "crossed",
    /// Virtual addresses exchanged for those behind them at connect().
    Translated = "translated",
    /// Virtual addresses that the kernel's map does not know; the daemon is asked.
    Untranslated = "untranslated",
    /// Virtual addresses put back at getpeername().
    PeersNamed = "peers_named",
    /// Destinations of datagrams exchanged on the way out: at connect() or for each one.
    DatagramsEncoded = "datagrams_encoded",
    /// Destinations put back: for each datagram received, and at getpeername().
    DatagramsDecoded = "datagrams_decoded",
    /// Datagrams left to the floor because their destination found no index.
    DatagramsUnindexed = "datagrams_unindexed",
    /// Datagrams left to the floor because their socket is tied to a device.
    DatagramsBound = "datagrams_bound",
    /// Datagrams handed to the daemon's socket.
    DatagramsAssigned = "datagrams_assigned",
    /// Packets of containers taken off their bridge for the cluster.
    ContainersSteered = "containers_steered",
    /// Packets of containers taken off their bridge because they ask a name server.
    ContainersAsked = "containers_asked",
    /// Packets handed back to containers.
    ContainersAnswered = "containers_answered",
    /// Packets of containers left alone because their source does not live behind their bridge.
    ContainersForeign = "containers_foreign",
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn indices_follow_the_order_and_names_are_distinct() {
        for (i, c) in Counter::ALL.iter().enumerate() {
            assert_eq!(*c as usize, i);
        }
        let names: BTreeSet<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Counter::COUNT as usize);
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
