//! Socket options that no library wraps: marks of packets, datagrams without checksum, and IP
//! options.

use std::{
    ffi::CString,
    io,
    mem::{MaybeUninit, zeroed},
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

const SO_RCVMARK: i32 = 75;

fn set_option(socket: &impl AsRawFd, option: i32, value: u32) -> io::Result<()> {
    set_bytes(socket, libc::SOL_SOCKET, option, &value.to_ne_bytes())
}

fn set_bytes(socket: &impl AsRawFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer is to live bytes of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts IPv4 options or an IPv6 extension header, with nothing but padding in them, before the
/// transport header of what the socket sends.
pub(crate) fn with_options(socket: &impl AsRawFd, v6: bool) -> io::Result<()> {
    if v6 {
        const PADDED: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
        set_bytes(socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &PADDED)
    } else {
        set_bytes(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1, 1, 1, 0])
    }
}

/// Sends datagrams with checksum zero from now on.
pub(crate) fn without_checksum(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SO_NO_CHECK, 1)
}

/// Marks what the socket sends.
pub(crate) fn set(socket: &UdpSocket, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SO_MARK, mark)
}

/// Has the kernel tell the mark of what the socket receives.
pub(crate) fn report(socket: &impl AsRawFd) -> io::Result<()> {
    set_option(socket, SO_RCVMARK, 1)
}

/// A datagram's sender and mark; waits two seconds at most.
pub(crate) fn receive(socket: &UdpSocket) -> io::Result<(SocketAddr, u32)> {
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    // SAFETY: plain data, for which zero is a value.
    let mut from: libc::sockaddr_in = unsafe { zeroed() };
    let mut data = [0; 2048];
    let (_, mark) = message(socket, Some(&mut from), &mut data)?;
    let ip = u32::from_be(from.sin_addr.s_addr).into();
    Ok((SocketAddrV4::new(ip, u16::from_be(from.sin_port)).into(), mark))
}

/// What is received, and its mark: zero if the kernel told none.
fn message(
    socket: &impl AsRawFd,
    from: Option<&mut libc::sockaddr_in>,
    data: &mut [u8],
) -> io::Result<(usize, u32)> {
    let mut slice = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut control = [0_u64; 16];
    // SAFETY: plain data, for which zero is a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    if let Some(from) = from {
        header.msg_name = ptr::from_mut(from).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    }
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of the header is to a live buffer of the length beside it.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::last_os_error())?;
    let mut mark = 0;
    // SAFETY: the kernel has filled the control buffer, which the macros walk within its length.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        while !at.is_null() {
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SO_MARK {
                mark = libc::CMSG_DATA(at).cast::<u32>().read_unaligned();
            }
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    Ok((bytes, mark))
}

/// Sees packets as they leave a device, behind every program.
pub(crate) struct Tap(OwnedFd);

impl Tap {
    /// Of a device of this thread's network namespace.
    pub(crate) fn open(device: &str) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a system call without pointers.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, protocol.into())
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        let tap = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let name = CString::new(device).map_err(io::Error::other)?;
        // SAFETY: plain data, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name ends with zero.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) }.cast_signed();
        // SAFETY: the pointer is to a live address of the length given.
        let bound = unsafe {
            libc::bind(
                tap.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        report(&tap.0)?;
        Ok(tap)
    }

    /// The mark of the first IPv4 UDP packet from a port, if one has passed.
    pub(crate) fn mark_of_udp_from(&self, port: u16) -> Option<u32> {
        let mut packet = [0; 2048];
        while let Ok((bytes, mark)) = message(&self.0, None, &mut packet) {
            let packet = &packet[..bytes];
            let header = usize::from(packet.first()? & 15) * 4;
            let is_udp = packet[0] >> 4 == 4 && packet.get(9) == Some(&17);
            if is_udp && packet.get(header..header + 2) == Some(&port.to_be_bytes()) {
                return Some(mark);
            }
        }
        None
    }
}
