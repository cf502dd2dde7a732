//! Captures as files that tcpdump and Wireshark read: pcap-ng (draft-ietf-opsawg-pcapng). An interface
//! for each device and side; each frame with its direction, the program's answer, the number that both
//! sides have, and a comment that says so in words.

use std::collections::BTreeMap;

use super::frame::{Frame, Side, Verdict};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const ETHERNET: u16 = 1;

/// Makes blocks, each whole, in the order that a file has them.
#[derive(Debug)]
pub struct Writer {
    snap_length: u32,
    /// By device and side.
    interfaces: BTreeMap<(u32, Side), u32>,
}

impl Writer {
    /// With the block that a file begins with.
    pub fn new(snap_length: u32, blocks: &mut Vec<u8>) -> Self {
        let mut body = vec![];
        body.extend(0x1a2b_3c4d_u32.to_ne_bytes());
        body.extend([1_u16, 0].map(u16::to_ne_bytes).concat());
        // Of no length that is known beforehand.
        body.extend(u64::MAX.to_ne_bytes());
        option(&mut body, 4, concat!("proxy-agent ", env!("CARGO_PKG_VERSION")).as_bytes());
        block(blocks, SECTION, body);
        Self { snap_length, interfaces: BTreeMap::new() }
    }

    /// Declares both sides of a device, if that has not been done.
    pub fn declare(&mut self, device: u32, name: &str, blocks: &mut Vec<u8>) {
        for side in [Side::In, Side::Out] {
            let next = self.interfaces.len() as u32;
            if self.interfaces.contains_key(&(device, side)) {
                continue;
            }
            self.interfaces.insert((device, side), next);
            let mut body = ETHERNET.to_ne_bytes().to_vec();
            body.extend([0; 2]);
            body.extend(self.snap_length.to_ne_bytes());
            option(&mut body, 2, format!("{name}:{}", side.name()).as_bytes());
            let said = match side {
                Side::In => "before XDP, as it came in by this device",
                Side::Out => "behind XDP, of what came in by this device",
            };
            option(&mut body, 3, said.as_bytes());
            // Nanoseconds.
            option(&mut body, 9, &[9]);
            block(blocks, INTERFACE, body);
        }
    }

    /// A frame of a device that has been declared, before which `lost` others were lost.
    pub fn frame(&self, frame: &Frame, lost: u64, blocks: &mut Vec<u8>) {
        let Some(interface) = self.interfaces.get(&(frame.device, frame.side)) else { return };
        let mut body = vec![];
        for word in [
            *interface,
            (frame.time >> 32) as u32,
            frame.time as u32,
            frame.bytes.len() as u32,
            frame.length,
        ] {
            body.extend(word.to_ne_bytes());
        }
        body.extend(&frame.bytes);
        pad(&mut body);
        // What passed goes on into the node.
        let is_outbound = frame.side == Side::Out && frame.verdict() == Some(Verdict::Sent);
        let direction: u32 = if is_outbound { 2 } else { 1 };
        option(&mut body, 2, &direction.to_ne_bytes());
        if lost > 0 {
            option(&mut body, 4, &lost.to_ne_bytes());
        }
        option(&mut body, 5, &frame.number.to_ne_bytes());
        if let Some(action) = frame.action {
            // An XDP program's.
            let verdict = [&[2][..], &u64::from(action).to_ne_bytes()].concat();
            option(&mut body, 7, &verdict);
            option(&mut body, 1, Verdict::of(action).name().as_bytes());
        }
        block(blocks, PACKET, body);
    }
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    pad(body);
}

/// A block is its length, twice, around what it holds; all of ours have options, which end so.
fn block(blocks: &mut Vec<u8>, kind: u32, mut body: Vec<u8>) {
    option(&mut body, 0, &[]);
    let length = (12 + body.len() as u32).to_ne_bytes();
    blocks.extend(kind.to_ne_bytes());
    blocks.extend(length);
    blocks.extend(body);
    blocks.extend(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::frame::tests::frame;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
    }

    /// Type and body of each block, whose lengths must agree.
    fn read(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = word(bytes, 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(word(bytes, length - 4) as usize, length);
            found.push((word(bytes, 0), bytes[8..length - 4].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let [code, length] = [0, 2].map(|at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
            if code == 0 {
                assert_eq!(bytes.len(), 4);
                return found;
            }
            let length = usize::from(length);
            found.push((code, bytes[4..4 + length].to_vec()));
            bytes = &bytes[4 + length.next_multiple_of(4)..];
        }
    }

    #[test]
    fn blocks_are_as_the_format_has_them() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(65_000, &mut bytes);
        writer.declare(2, "eth0", &mut bytes);
        writer.declare(2, "eth0", &mut bytes);
        let frame = Frame { number: 9, ..frame(Side::Out, Some(3)) };
        writer.frame(&frame, 4, &mut bytes);
        writer.frame(&Frame { device: 7, ..frame.clone() }, 0, &mut bytes);
        let blocks = read(&bytes);
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, INTERFACE, PACKET]);
        assert_eq!(word(&blocks[0].1, 0), 0x1a2b_3c4d);
        assert_eq!(word(&blocks[2].1, 4), 65_000);
        let names = options(&blocks[2].1[8..]);
        assert_eq!(names[0], (2, b"eth0:out".to_vec()));
        assert!(names.contains(&(9, vec![9])));
        let packet = &blocks[3].1;
        assert_eq!(word(packet, 0), 1);
        assert_eq!(u64::from(word(packet, 4)) << 32 | u64::from(word(packet, 8)), frame.time);
        assert_eq!([word(packet, 12), word(packet, 16)], [frame.length; 2]);
        assert_eq!(packet[20..20 + 54], frame.bytes);
        assert_eq!(
            options(&packet[20 + 56..]),
            [
                (2, 2_u32.to_ne_bytes().to_vec()),
                (4, 4_u64.to_ne_bytes().to_vec()),
                (5, 9_u64.to_ne_bytes().to_vec()),
                (7, [&[2][..], &3_u64.to_ne_bytes()].concat()),
                (1, b"sent".to_vec()),
            ]
        );
    }
}
