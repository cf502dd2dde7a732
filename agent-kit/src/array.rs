//! Array maps that user space writes without system calls, through a mapping of their memory.
//!
//! Programs read while we write, so every access is an aligned 8-byte atomic one: a reader sees
//! each word as it was or as it is. Order between words is the writer's business: it stores
//! the word that makes others visible last, with [`Array::store`].

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    ops::Deref,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::Pod;

use crate::bpf;

const WORD: usize = size_of::<u64>();

#[derive(Debug)]
struct Mapping {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is only reached through atomics, and lives as long as the mapping.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a map's memory, or with no map fresh zeros.
    fn new(map: Option<BorrowedFd<'_>>, words: usize) -> io::Result<Self> {
        let (fd, kind) = match map {
            Some(map) => (map.as_raw_fd(), libc::MAP_SHARED),
            None => (-1, libc::MAP_SHARED | libc::MAP_ANONYMOUS),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), words * WORD, protection, kind, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `words` words long, and lives as long as `self`;
        // its bytes are only reached through atomics, by us, and by programs in the kernel.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nothing borrows it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * WORD) };
    }
}

/// An array to read.
#[derive(Debug)]
pub struct ArrayView<V> {
    mapping: Arc<Mapping>,
    capacity: u32,
    value: PhantomData<fn() -> V>,
}

impl<V> Clone for ArrayView<V> {
    fn clone(&self) -> Self {
        Self { mapping: Arc::clone(&self.mapping), capacity: self.capacity, value: PhantomData }
    }
}

impl<V: Pod> ArrayView<V> {
    /// Words from one element to the next: the kernel rounds elements up to eight bytes.
    const STRIDE: usize = size_of::<V>().div_ceil(WORD);

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn element(&self, index: u32) -> Option<&[AtomicU64]> {
        self.mapping.words().chunks_exact(Self::STRIDE).nth(index as usize)
    }

    /// Reads an element, word by word: words that change together may be read apart.
    pub fn read(&self, index: u32) -> Option<V> {
        let element = self.element(index)?;
        let mut value = MaybeUninit::<V>::uninit();
        let mut at = value.as_mut_ptr().cast::<u8>();
        let mut left = size_of::<V>();
        for word in element {
            let bytes = word.load(Ordering::Acquire).to_ne_bytes();
            let count = left.min(WORD);
            // SAFETY: `at` has `left` bytes of `value` before it, of which `count` are written.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, count);
                at = at.add(count);
            }
            left -= count;
        }
        // SAFETY: all bytes were written, and any bytes make a valid `Pod`.
        Some(unsafe { value.assume_init() })
    }

    /// Reads one aligned word of an element at once.
    pub fn load(&self, index: u32, word: usize) -> Option<u64> {
        Some(self.element(index)?.get(word)?.load(Ordering::Acquire))
    }
}

/// An array to write. Each map has one writer.
#[derive(Debug)]
pub struct Array<V>(ArrayView<V>);

impl<V> Deref for Array<V> {
    type Target = ArrayView<V>;

    fn deref(&self) -> &ArrayView<V> {
        &self.0
    }
}

impl<V: Pod> Array<V> {
    /// Maps the memory of an array map made with `BPF_F_MMAPABLE`.
    pub fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        let layout = bpf::map_layout(map)?;
        if layout.value_size as usize != size_of::<V>() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Self::new(Some(map), layout.max_entries)
    }

    /// An array of our own, of which no program knows.
    pub fn private(capacity: u32) -> io::Result<Self> {
        Self::new(None, capacity)
    }

    fn new(map: Option<BorrowedFd<'_>>, capacity: u32) -> io::Result<Self> {
        let words = capacity as usize * ArrayView::<V>::STRIDE;
        let mapping = Arc::new(Mapping::new(map, words)?);
        Ok(Self(ArrayView { mapping, capacity, value: PhantomData }))
    }

    /// The same array, to read.
    pub fn view(&self) -> ArrayView<V> {
        self.0.clone()
    }

    /// Writes an element word by word; false if there is no such element. Nothing may lead a
    /// reader to it meanwhile.
    pub fn write(&mut self, index: u32, value: &V) -> bool {
        let Some(element) = self.element(index) else { return false };
        let mut at = std::ptr::from_ref(value).cast::<u8>();
        let mut left = size_of::<V>();
        for word in element {
            let mut bytes = [0; WORD];
            let count = left.min(WORD);
            // SAFETY: `at` has `left` bytes of `value` before it, of which `count` are read;
            // `Pod` has no padding that would be uninitialised.
            unsafe {
                std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), count);
                at = at.add(count);
            }
            left -= count;
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        true
    }

    /// Writes one aligned word of an element at once, after all that was written before.
    pub fn store(&mut self, index: u32, word: usize, value: u64) -> bool {
        let Some(word) = self.element(index).and_then(|element| element.get(word)) else {
            return false;
        };
        word.store(value, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_rounded_up_to_words() {
        let mut array = Array::<[u32; 3]>::private(4).unwrap();
        assert!(array.write(1, &[1, 2, 3]));
        assert!(array.write(2, &[4, 5, 6]));
        assert_eq!(array.read(1), Some([1, 2, 3]));
        assert_eq!(array.load(2, 1), Some(6));
        assert_eq!(array.read(4), None);
        assert!(!array.write(4, &[0; 3]));
    }
}
