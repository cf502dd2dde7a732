//! What the socket path remembers of a translation, so that the application sees the frontend
//! as its peer.

use crate::address::Be16;

/// Value of the socket storages `SOCKETS4` and `SOCKETS6`: the translation of a socket's last
/// `connect`. 16 and 40 bytes. It dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connected<A> {
    pub frontend: A,
    pub backend: A,
    pub frontend_port: Be16,
    pub backend_port: Be16,
    pub service: u32,
}

/// Key of the LRU tables `PEERS4` and `PEERS6`: a backend that an unconnected socket has sent
/// to. 16 and 28 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerKey<A> {
    /// `bpf_get_socket_cookie`, in two halves so that no key is padded to eight bytes.
    pub cookie: [u32; 2],
    pub backend: A,
    pub backend_port: Be16,
    pub pad: u16,
}

/// Value of the peer tables: the frontend that the application meant. 12 and 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer<A> {
    pub frontend: A,
    pub frontend_port: Be16,
    pub pad: u16,
    pub service: u32,
}
