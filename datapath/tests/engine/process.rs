//! Socket calls of processes: of the node itself, and of its pods.

use datapath::{
    connect::{self, Call, Caller},
    flow::Place,
    host::memory::Memory,
};

use crate::machine::Side;

/// Whose call it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Process {
    Node,
    Pod,
    /// A pod's, by a socket that has a peer when it sends.
    PodWithPeer,
}

impl Caller for Process {
    fn is_of_node(&self) -> bool {
        *self == Self::Node
    }

    fn has_peer(&self) -> bool {
        *self == Self::PodWithPeer
    }
}

/// A pod's `connect`.
pub(crate) fn connect<F: Side>(
    memory: &mut Memory<F>,
    to: Place<F::Address>,
    proto: u8,
) -> Call<F::Address> {
    connect::connect::<F, _>(memory, to, proto, &Process::Pod)
}

/// A pod's `sendto`, on an unconnected socket.
pub(crate) fn send<F: Side>(
    memory: &mut Memory<F>,
    to: Place<F::Address>,
    cookie: u64,
) -> Call<F::Address> {
    connect::send::<F, _>(memory, to, cookie, &Process::Pod)
}
