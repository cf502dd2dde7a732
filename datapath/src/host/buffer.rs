//! A packet in a vector, changed by the rules of the kernel's helpers
//! (`net/core/filter.c`, `net/core/utils.c`).

use crate::{
    checksum::{fold, replace},
    packet::{Covers, Packet},
};

/// Length of the Ethernet header, which the helpers count and a [`Buffer`] does not hold.
const ETHERNET: u32 = 14;
/// The checksum helpers take no offset beyond this.
const LAST_OFFSET: u32 = 0xffff;
/// `bpf_skb_adjust_room` takes no more off at once.
const LAST_SHED: u32 = 0xfff;

/// Bytes from the network header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    /// Where the transport checksum stands, if the packet has CHECKSUM_PARTIAL: then the field
    /// holds the sum of the pseudo header only (of SCTP: zero), and the device that sends the packet does the
    /// rest.
    pub partial: Option<u32>,
    pub mark: u32,
}

impl Buffer {
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, partial: None, mark: 0 }
    }

    /// The two bytes of a checksum, where the helpers would change them: at even offsets.
    fn word(&mut self, offset: u32) -> Option<&mut [u8]> {
        if offset.checked_add(ETHERNET)? > LAST_OFFSET || !offset.is_multiple_of(2) {
            return None;
        }
        self.bytes.get_mut(offset as usize..offset as usize + 2)
    }
}

fn read(word: &[u8]) -> u16 {
    u16::from_ne_bytes([word[0], word[1]])
}

impl Packet for Buffer {
    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let offset = offset as usize;
        self.bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn words<const W: usize>(&self, offset: u32) -> Option<[u32; W]> {
        let offset = offset as usize;
        let (bytes, _) = self.bytes.get(offset..offset.checked_add(4 * W)?)?.as_chunks();
        bytes.iter().map(|word| u32::from_ne_bytes(*word)).collect::<Vec<_>>().try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        let offset = offset as usize;
        self.bytes.get_mut(offset..offset.checked_add(N)?)?.copy_from_slice(bytes);
        Some(())
    }

    fn store_words<const W: usize>(&mut self, offset: u32, words: &[u32; W]) -> Option<()> {
        let offset = offset as usize;
        let bytes = self.bytes.get_mut(offset..offset.checked_add(4 * W)?)?;
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_ne_bytes();
        }
        Some(())
    }

    fn change_transport_checksum(
        &mut self,
        offset: u32,
        difference: u32,
        covers: Covers,
        zero_is_none: bool,
    ) -> Option<()> {
        let partial = self.partial.is_some();
        let word = self.word(offset)?;
        let old = read(word);
        if zero_is_none && old == 0 {
            return Some(());
        }
        let mut new = match covers {
            Covers::Payload if partial => old,
            _ if partial => fold(u32::from(fold(difference)) + u32::from(old)),
            _ => replace(old, difference),
        };
        if zero_is_none && new == 0 {
            new = 0xffff;
        }
        word.copy_from_slice(&new.to_ne_bytes());
        Some(())
    }

    fn resize(&mut self, length: u32) -> Option<()> {
        // `bpf_skb_change_tail` cuts nothing off a checksum that is yet to be completed.
        if self.partial.is_some_and(|field| length < field + 2) {
            return None;
        }
        // Undefined means that whoever relies on it finds this.
        self.bytes.resize(length as usize, 0xaa);
        Some(())
    }

    fn shed(&mut self, length: u32) -> Option<()> {
        // An IP header at least is left.
        if length > LAST_SHED || length + 20 > self.len() {
            return None;
        }
        self.bytes.drain(..length as usize);
        // `skb_postpull_rcsum`; the kernel goes by where the sum begins, which is before.
        self.partial = self.partial.and_then(|field| field.checked_sub(length));
        Some(())
    }
}
