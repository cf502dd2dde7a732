//! What the socket path remembers of a translation, so that the application sees the frontend
//! as its peer.

use crate::{address::Be16, flow::Place, maps::SOCKETS_CAPACITY};

/// Row of the arrays `SOCKETS4` and `SOCKETS6`: the translation of a socket's last `connect`,
/// until the process lets go of the socket. 24 and 48 bytes.
///
/// A socket's row stands in one of [`WAYS`] places ([`place`]), and the one that holds the
/// socket's cookie is it. Neither in the socket's own storage nor in a hash table, because a
/// connection through either costs as much as all else of the socket path: the one allocates
/// twice, the other touches memory far apart, while cookies, which the kernel counts up, lead
/// to places side by side.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connected<A> {
    /// `bpf_get_socket_cookie`; zero if the row is free.
    pub cookie: u64,
    pub frontend: A,
    pub backend: A,
    pub frontend_port: Be16,
    pub backend_port: Be16,
    pub service: u32,
}

/// Places in which a socket's row may stand. With half of the table taken by sockets that live
/// on, one in sixteen finds none free.
pub const WAYS: u32 = 4;

/// One of the places for a socket's row; `way` is below [`WAYS`].
#[inline(always)]
#[must_use]
pub const fn place(cookie: u64, way: u32) -> u32 {
    const STEP: u32 = SOCKETS_CAPACITY as u32 / WAYS;
    // The kernel gives each processor cookies by the thousand, so the low bits spread well.
    (cookie as u32).wrapping_add(way * (STEP + 1)) & (SOCKETS_CAPACITY as u32 - 1)
}

/// Key of the LRU tables `PEERS4` and `PEERS6`: what an unconnected socket has to do with. 16 and
/// 28 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PeerKey<A> {
    /// `bpf_get_socket_cookie`, in two halves so that no key is padded to eight bytes.
    pub cookie: [u32; 2],
    pub addr: A,
    pub port: Be16,
    /// [`side`].
    pub side: u16,
}

/// What `PeerKey::addr` and `PeerKey::port` are.
pub mod side {
    /// A backend that the socket was given: the row tells the frontend that the application
    /// means by it.
    pub const BACKEND: u16 = 0;
    /// A frontend that the application sends to: the row tells the backend it was given last.
    pub const FRONTEND: u16 = 1;
}

/// Value of the peer tables. 12 and 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer<A> {
    pub addr: A,
    pub port: Be16,
    /// `SetRef::generation` of the set that the backend was found in last.
    pub generation: u16,
    pub service: u32,
}

impl<A: Copy> PeerKey<A> {
    #[inline(always)]
    pub const fn new(cookie: u64, place: Place<A>, side: u16) -> Self {
        let cookie = [cookie as u32, (cookie >> 32) as u32];
        Self { cookie, addr: place.addr, port: place.port, side }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_of_a_socket_differ_and_those_of_the_next_are_beside_them() {
        for cookie in [1, 2, 0xffff, 0x1_0000, 0xffff_ffff, u64::MAX] {
            let places = [0, 1, 2, 3].map(|way| place(cookie, way));
            for (at, one) in places.iter().enumerate() {
                assert!(*one < SOCKETS_CAPACITY as u32);
                assert!(!places[at + 1..].contains(one), "{cookie}: {places:?}");
            }
        }
        assert_eq!(place(8, 0) + 1, place(9, 0));
    }
}
