//! What `ethtool` would tell of a device (include/uapi/linux/ethtool.h). Anybody may ask.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const GET_DRIVER: u32 = 0x3;
const GET_FLAGS: u32 = 0x25;
const GET_CHANNELS: u32 = 0x3c;
/// `ETH_FLAG_LRO`.
const LRO: u32 = 1 << 15;

/// Where `driver` lies in `struct ethtool_drvinfo`, and how long it is.
const DRIVER: usize = 4;
const DRIVER_LEN: usize = 32;

/// The largest of the structures that are asked for, `struct ethtool_drvinfo`: 196 bytes.
type Answer = [u32; 49];

/// Pairs of queues that receive and transmit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channels {
    pub used: u32,
    pub most: u32,
}

/// A socket to ask by.
#[derive(Debug)]
pub struct Ethtool(Option<OwnedFd>);

impl Ethtool {
    #[must_use]
    pub fn open() -> Self {
        Self(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok())
    }

    /// The name of its driver; of devices without hardware, mostly their kind.
    pub fn driver(&self, device: &str) -> Option<String> {
        let answer = self.ask(device, GET_DRIVER)?;
        let bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Some(crate::dump::text(&bytes[DRIVER..DRIVER + DRIVER_LEN]))
    }

    /// Whether it joins segments before programs see them.
    pub fn has_lro(&self, device: &str) -> bool {
        self.ask(device, GET_FLAGS).is_some_and(|answer| answer[1] & LRO != 0)
    }

    pub fn channels(&self, device: &str) -> Option<Channels> {
        // `max_combined` and `combined_count` of `struct ethtool_channels`.
        self.ask(device, GET_CHANNELS).map(|answer| Channels { most: answer[4], used: answer[8] })
    }

    fn ask(&self, device: &str, question: u32) -> Option<Answer> {
        let mut answer: Answer = [0; 49];
        answer[0] = question;
        // SAFETY: of plain numbers and a pointer that is written below, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if device.len() >= request.ifr_name.len() {
            return None;
        }
        for (to, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = libc::c_char::from_ne_bytes([byte]);
        }
        request.ifr_ifru.ifru_data = answer.as_mut_ptr().cast();
        // SAFETY: the kernel reads the request, and writes no more than the structure that the question
        // has, which the answer has room for.
        let result = unsafe {
            libc::ioctl(self.0.as_ref()?.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request)
        };
        (result == 0).then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_tells_nothing() {
        let ethtool = Ethtool::open();
        assert_eq!(ethtool.driver("no-such-device"), None);
        assert_eq!(ethtool.driver("a-name-longer-than-any"), None);
        assert_eq!(ethtool.channels("lo"), None);
    }
}
