//! Lists that the kernel gives over netlink, where no library of ours reads them: one request, and
//! the messages that answer it, in the kernel's own form (include/uapi/linux/netlink.h).

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send,
        socket_with,
    },
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ORDER: u16 = 0x5;
/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket for requests of one protocol of netlink; none is `NETLINK_ROUTE`.
pub struct Dump {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Dump {
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { socket, buffer: vec![0; 32 << 10] })
    }

    /// Asks for all there is of a kind, with `body` behind the header, and hands what follows the
    /// header of each answer of the kind `wanted` to `visit`. A refusal ends the list: there is
    /// nothing of the kind, unless it is for want of a capability, which is an error.
    pub fn ask(
        &mut self,
        kind: u16,
        body: &[u8],
        wanted: u16,
        mut visit: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.send(kind, DUMP, body)?;
        loop {
            let (length, _) = recv(&self.socket, &mut self.buffer, RecvFlags::empty())?;
            if messages(&self.buffer[..length], wanted, &mut visit)? {
                return Ok(());
            }
        }
    }

    /// Has the kernel do something.
    ///
    /// # Errors
    /// What it says.
    pub fn order(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, ORDER, body)?;
        let (length, _) = recv(&self.socket, &mut self.buffer, RecvFlags::empty())?;
        match u32_at(&self.buffer[..length], HEADER) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(error.wrapping_neg().cast_signed())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        // Sequence and port.
        request.extend([0; 8]);
        request.extend(body);
        send(&self.socket, &request, SendFlags::empty())?;
        Ok(())
    }
}

/// Visits the messages of one answer; true if it was the last.
fn messages(mut answer: &[u8], wanted: u16, visit: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(answer, 0), u16_at(answer, 4)) {
        // `struct nlmsgerr` begins with the number of the error, less than zero.
        let error = u32_at(answer, HEADER).map_or(0, u32::wrapping_neg);
        if kind == NLMSG_ERROR && error == Errno::PERM.raw_os_error().cast_unsigned() {
            return Err(Errno::PERM.into());
        }
        if matches!(kind, NLMSG_DONE | NLMSG_ERROR) {
            return Ok(true);
        }
        let length = length as usize;
        let Some(message) = answer.get(HEADER..length) else { return Ok(true) };
        if kind == wanted {
            visit(message);
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The value of the first attribute of a kind.
pub fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    self::attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// All attributes, kind and value; those that are cut off are left out.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Bits of the kind that are flags.
    const FLAGS: u16 = 0xc000;
    std::iter::from_fn(move || {
        let (length, kind) = (u16_at(rest, 0)? as usize, u16_at(rest, 2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !FLAGS, value))
    })
}

/// A string with or without the zero that ends it.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// An attribute as it stands in a message.
pub(crate) fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    fn visited(answer: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let mut found = Vec::new();
        let is_end = messages(answer, 44, &mut |body| found.push(body.to_vec())).unwrap();
        (found, is_end)
    }

    #[test]
    fn messages_of_the_kind_until_the_end() {
        let mut answer = message(44, &[1; 8]);
        answer.extend(message(45, &[2; 8]));
        answer.extend(message(44, &[3; 4]));
        assert_eq!(visited(&answer), (vec![vec![1; 8], vec![3; 4]], false));
        answer.extend(message(NLMSG_DONE, &[0; 4]));
        assert!(visited(&answer).1);
        assert_eq!(visited(&message(NLMSG_ERROR, &[0; 20])), (vec![], true));
        let refusal = (-libc::ENOENT).to_ne_bytes();
        assert_eq!(visited(&message(NLMSG_ERROR, &refusal)), (vec![], true));
        let refusal = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        assert!(messages(&refusal, 44, &mut |_| {}).is_err());
    }

    #[test]
    fn an_answer_that_is_cut_off_ends_the_list() {
        let whole = message(44, &[1; 8]);
        for length in 0..whole.len() {
            assert_eq!(visited(&whole[..length]).0, Vec::<Vec<u8>>::new());
        }
    }

    #[test]
    fn attributes_by_kind() {
        let mut bytes = attribute_of(1, b"bpf\0");
        bytes.extend(attribute_of(0x8002, &[7; 5]));
        assert_eq!(attribute(&bytes, 1).map(text).as_deref(), Some("bpf"));
        assert_eq!(attribute(&bytes, 2), Some(&[7; 5][..]));
        assert_eq!(attribute(&bytes, 3), None);
    }
}
