//! Sockets of this network namespace that have a peer, listed and ended by the kernel's socket
//! diagnosis (include/uapi/linux/inet_diag.h).

use std::io;

use rustix::net::netlink;

use crate::dump::{Dump, u32_at};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Bits of `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2` and `TCP_CLOSE_WAIT`:
/// a process has such a socket, or its peer may still say something. Datagram sockets that have a peer
/// are in the first.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;
/// Where `struct inet_diag_sockid` lies in `struct inet_diag_msg`, and how long it is.
const ID: usize = 4;
const ID_LEN: usize = 48;
/// Where in it `idiag_cookie` is.
const COOKIE: usize = 40;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];

/// A socket that has a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connected {
    family: u8,
    proto: u8,
    /// As the kernel wrote it.
    id: [u8; ID_LEN],
}

impl Connected {
    /// What `bpf_get_socket_cookie` gives for it.
    pub fn cookie(&self) -> u64 {
        let half = |at| u64::from(u32_at(&self.id, at).unwrap_or_default());
        half(COOKIE) | half(COOKIE + 4) << 32
    }
}

/// A socket for questions about sockets.
pub struct SocketDiag(Dump);

impl SocketDiag {
    pub fn open() -> io::Result<Self> {
        Dump::open(Some(netlink::SOCK_DIAG)).map(Self)
    }

    /// All sockets of a protocol, `IPPROTO_TCP` or `IPPROTO_UDP`, that have a peer.
    pub fn connected(&mut self, proto: u8) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in FAMILIES {
            self.0.ask(BY_FAMILY, &request(family, proto, &[0; ID_LEN]), BY_FAMILY, |message| {
                found.extend(read(proto, message));
            })?;
        }
        Ok(found)
    }

    /// Ends a socket: it loses its peer, which is reset if it is one of TCP, and what its process does
    /// next, or waits for, fails with ECONNABORTED.
    ///
    /// # Errors
    /// `ENOENT` if it is gone; `EPERM` without `CAP_NET_ADMIN`; `EOPNOTSUPP` if the kernel was
    /// built without `CONFIG_INET_DIAG_DESTROY`.
    pub fn end(&mut self, socket: &Connected) -> io::Result<()> {
        self.0.order(DESTROY, &request(socket.family, socket.proto, &socket.id))
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, proto: u8, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut request = vec![family, proto, 0, 0];
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(id);
    request
}

/// `struct inet_diag_msg`.
fn read(proto: u8, message: &[u8]) -> Option<Connected> {
    let id = message.get(ID..)?.first_chunk()?;
    Some(Connected { family: *message.first()?, proto, id: *id })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    /// How many sockets of a protocol have a peer and this port.
    fn with_port(proto: u8, port: u16) -> usize {
        let found = SocketDiag::open().unwrap().connected(proto).unwrap();
        found.iter().filter(|found| found.id[..2] == port.to_be_bytes()).count()
    }

    #[test]
    fn a_socket_with_a_peer_is_found_and_one_without_is_not() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(peer.local_addr().unwrap()).unwrap();
        assert_eq!(with_port(UDP, socket.local_addr().unwrap().port()), 1);
        assert_eq!(with_port(UDP, peer.local_addr().unwrap().port()), 0);
    }

    #[test]
    fn a_connection_is_found_and_who_listens_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(with_port(TCP, port), 0);
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _accepted = listener.accept().unwrap();
        assert_eq!(with_port(TCP, client.local_addr().unwrap().port()), 1);
        assert_eq!(with_port(TCP, port), 1);
    }

    #[test]
    fn a_message_that_is_cut_off_is_none() {
        assert_eq!(read(UDP, &[2; ID + ID_LEN - 1]), None);
        let mut message = [0; ID + ID_LEN + 20];
        message[0] = 10;
        message[ID + COOKIE] = 7;
        message[ID + COOKIE + 4] = 1;
        assert_eq!(read(UDP, &message).map(|found| found.cookie()), Some(0x1_0000_0007));
    }
}
