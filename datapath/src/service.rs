//! A Service port's two sets of backends and its policies: the row every choice of backend
//! starts from.

use crate::algorithm::Algorithm;

/// Words that are read and written at once, as the number that an atomic write takes.
macro_rules! word {
    ($name:ident) => {
        impl $name {
            /// The word as one number, for an atomic write.
            #[inline(always)]
            #[must_use]
            pub const fn word(self) -> u64 {
                // SAFETY: eight bytes of plain data without padding, aligned to eight.
                unsafe { core::mem::transmute(self) }
            }

            /// What a word says that was read at once.
            #[inline(always)]
            #[must_use]
            pub const fn from_word(word: u64) -> Self {
                // SAFETY: eight bytes, every pattern of which is a valid value.
                unsafe { core::mem::transmute(word) }
            }
        }
    };
}

/// Value of the array `SERVICES`: 24 bytes. One row per Service port and family.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// All usable backends.
    pub cluster: SetRef,
    /// The usable backends on this node, for the `Local` traffic policies.
    pub local: SetRef,
    /// Bits of [`service_flags`]. With the field after it one aligned word, [`ServicePolicy`].
    pub flags: u32,
    /// Timeout of session affinity in units of [`crate::flow::TICK_NS`]; zero if there is none.
    pub affinity: u32,
}

/// What a [`Service`] says of its connections beside its sets. Eight bytes, read and written as
/// one aligned word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServicePolicy {
    /// `Service::flags`.
    pub flags: u32,
    /// `Service::affinity`.
    pub affinity: u32,
}

impl ServicePolicy {
    /// True if each connection goes to any backend, with equal chance.
    #[inline(always)]
    #[must_use]
    pub const fn is_random(self) -> bool {
        self.affinity == 0 && self.flags & service_flags::ALGORITHM == 0
    }

    /// True if where a sender's connection goes is left to chance, of its backends or of some.
    #[inline(always)]
    #[must_use]
    pub const fn is_by_chance(self) -> bool {
        matches!(Algorithm::of(self.flags), Algorithm::Random | Algorithm::LeastConn)
    }

    /// True if where a connection goes hangs on the client's address.
    #[inline(always)]
    #[must_use]
    pub const fn is_by_client(self) -> bool {
        self.is_sticky() || matches!(Algorithm::of(self.flags), Algorithm::SourceHash)
    }

    /// True if a client's connections go where its last one went.
    #[inline(always)]
    #[must_use]
    pub const fn is_sticky(self) -> bool {
        self.affinity != 0
    }
}

word!(ServicePolicy);

impl Service {
    #[inline(always)]
    #[must_use]
    pub const fn policy(&self) -> ServicePolicy {
        ServicePolicy { flags: self.flags, affinity: self.affinity }
    }
}

/// Where a set of backends lies in `BACKENDS4` or `BACKENDS6`. Eight bytes, read and written
/// as one aligned word, so that a reader sees the old set or the new one and never a mixture.
///
/// The generation stands in each of the set's backends too. Blocks are written before the word
/// that names them, and are used again only when every program that might still read them has
/// ended; a generation that does not match shows that this promise was broken, and the reader
/// starts again.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetRef {
    /// Index of the first backend; with `count` 0 one of [`empty_set`].
    pub block: u32,
    pub count: u16,
    pub generation: u16,
}

impl SetRef {
    /// No endpoint anywhere: refuse at once.
    pub const REJECT: Self = Self { block: empty_set::REJECT, count: 0, generation: 0 };
    /// Endpoints exist, but none that the traffic policy allows: drop.
    pub const DROP: Self = Self { block: empty_set::DROP, count: 0, generation: 0 };

    /// The slot that a number stands for which is spread evenly over 32 bits; each has an equal
    /// chance.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, entropy: u32) -> u32 {
        self.block + ((entropy as u64 * self.count as u64) >> 32) as u32
    }

    /// The slot whose turn it is, of a set that is not empty.
    #[inline(always)]
    #[must_use]
    pub const fn turn(self, turn: u32) -> u32 {
        match turn.checked_rem(self.count as u32) {
            Some(nth) => self.block + nth,
            None => self.block,
        }
    }
}

word!(SetRef);

/// What an empty set means (`SetRef::block` when `SetRef::count` is 0).
pub mod empty_set {
    pub const REJECT: u32 = 0;
    pub const DROP: u32 = 1;
}

/// Bits of `Service::flags`.
pub mod service_flags {
    use crate::algorithm;

    /// `internalTrafficPolicy: Local`.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// `externalTrafficPolicy: Local`.
    pub const EXTERNAL_LOCAL: u32 = 2;
    /// The row's backends stand in `BACKENDS6`.
    pub const IPV6: u32 = 4;
    /// The row is in use (an array has no other way to tell).
    pub const USED: u32 = 8;
    /// Only sources with a row in `RANGES4` or `RANGES6` may begin connections to the addresses of
    /// load balancers.
    pub const SOURCE_RANGES: u32 = 16;
    /// Beside `SOURCE_RANGES`: the node's own addresses are among them.
    pub const NODE_ADMITTED: u32 = 32;
    /// Pods' calls are left to the packet path.
    pub const PACKETS: u32 = 64;
    /// Number of an [`super::Algorithm`].
    pub const ALGORITHM: u32 = algorithm::MASK << algorithm::SHIFT;
}

/// Value of the hash table `NAMES`, keyed by the index into `SERVICES`: what a row is called,
/// for people and for metrics. 144 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceName {
    /// `NAMESPACE/NAME:PORT` in UTF-8, ended by zeros. Kubernetes bounds the parts to 63, 63
    /// and 15 bytes.
    pub text: [u8; 144],
}

/// Value of the array `STATS`, indexed like `SERVICES`: 40 bytes. Counted with atomic adds.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceCounters {
    /// Connections (or, for unconnected UDP, datagrams) translated by the socket path.
    pub socket_connections: u64,
    /// Flows begun on the packet path.
    pub packet_connections: u64,
    /// Packets of the packet path, both directions.
    pub packets: u64,
    /// Their length from the network header on.
    pub bytes: u64,
    /// Choices by round-robin.
    pub turns: u64,
}
