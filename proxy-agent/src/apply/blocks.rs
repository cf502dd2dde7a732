//! Space for backend sets in one of the arrays: blocks of neighbouring slots, given out best
//! fit and joined again when they come back, and the generation that marks each writing.
//!
//! A block that is given back lies in quarantine until every program that might still read it
//! has ended.

use std::collections::{BTreeMap, BTreeSet};

use super::quarantine::Quarantine;

/// A block to write a set into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    pub first: u32,
    /// What to mark the set with: not 0, and not what any of the slots was last marked with.
    pub generation: u16,
}

/// The slots of one array.
#[derive(Debug)]
pub struct Blocks {
    capacity: u32,
    used: u32,
    /// Free space: first slot → length.
    free: BTreeMap<u32, u32>,
    /// The same by length.
    by_length: BTreeSet<(u32, u32)>,
    quarantine: Quarantine<(u32, u32)>,
    /// Of each slot that was ever written, as far as the highest such.
    generations: Vec<u16>,
    generation: u16,
}

impl Blocks {
    pub fn new(capacity: u32) -> Self {
        let mut blocks = Self {
            capacity,
            used: 0,
            free: BTreeMap::new(),
            by_length: BTreeSet::new(),
            quarantine: Quarantine::default(),
            generations: Vec::new(),
            generation: 0,
        };
        blocks.put_free(0, capacity);
        blocks
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots of sets in force.
    pub fn used(&self) -> u32 {
        self.used
    }

    pub fn quarantine(&mut self) -> &mut Quarantine<(u32, u32)> {
        &mut self.quarantine
    }

    fn put_free(&mut self, first: u32, length: u32) {
        if length > 0 {
            self.free.insert(first, length);
            self.by_length.insert((length, first));
        }
    }

    fn take_free(&mut self, first: u32) -> u32 {
        let length = self.free.remove(&first).unwrap_or(0);
        self.by_length.remove(&(length, first));
        length
    }

    /// Space for `count` slots, the tightest that fits; `None` if there is none now.
    pub fn allocate(&mut self, count: u32) -> Option<Block> {
        let &(_, first) = self.by_length.range((count.max(1), 0)..).next()?;
        let length = self.take_free(first);
        self.put_free(first + count, length - count);
        self.used += count;
        let generation = self.mark(first, count);
        Some(Block { first, generation })
    }

    /// Chooses a generation that none of the slots bears, and notes it.
    fn mark(&mut self, first: u32, count: u32) -> u16 {
        let (first, end) = (first as usize, (first + count) as usize);
        if self.generations.len() < end {
            self.generations.resize(end, 0);
        }
        let slots = &mut self.generations[first..end];
        // A set has fewer slots than there are generations, so one of them is free.
        loop {
            self.generation = self.generation.checked_add(1).unwrap_or(1);
            if !slots.contains(&self.generation) {
                break;
            }
        }
        slots.fill(self.generation);
        self.generation
    }

    /// Notes what a slot was last marked with, as found in the table at start.
    pub fn note_generation(&mut self, slot: u32, generation: u16) {
        let slot = slot as usize;
        if generation != 0 {
            if self.generations.len() <= slot {
                self.generations.resize(slot + 1, 0);
            }
            self.generations[slot] = generation;
        }
    }

    /// Takes a block that is in force already; false if it is not free.
    pub fn reserve(&mut self, first: u32, count: u32) -> bool {
        let Some((&start, &length)) = self.free.range(..=first).next_back() else { return false };
        let Some(end) = first.checked_add(count) else { return false };
        if end > start + length {
            return false;
        }
        self.take_free(start);
        self.put_free(start, first - start);
        self.put_free(end, start + length - end);
        self.used += count;
        true
    }

    /// Gives a block back, to be used again after the next wait.
    pub fn release(&mut self, first: u32, count: u32) {
        self.used -= count;
        self.quarantine.put((first, count));
    }

    /// True if something was given back since the last wait began.
    pub fn needs_wait(&self) -> bool {
        self.quarantine.has_fresh()
    }

    /// The wait is over for what was given back before it began.
    pub fn settle(&mut self) {
        for (first, count) in self.quarantine.take_settled() {
            self.join(first, count);
        }
    }

    fn join(&mut self, mut first: u32, mut count: u32) {
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before + length == first
        {
            self.take_free(before);
            first = before;
            count += length;
        }
        if self.free.contains_key(&(first + count)) {
            count += self.take_free(first + count);
        }
        self.put_free(first, count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_never_overlap_and_generations_always_differ(
            steps in prop::collection::vec((0u8..3, 1u32..40, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut blocks = Blocks::new(256);
            let mut live: Vec<(u32, u32)> = Vec::new();
            let mut marks = [0u16; 256];
            for (kind, count, pick) in steps {
                match kind {
                    0 => if let Some(block) = blocks.allocate(count) {
                        prop_assert!(block.first + count <= 256);
                        for slot in block.first..block.first + count {
                            prop_assert!(live.iter().all(|&(f, c)| slot < f || slot >= f + c));
                            prop_assert_ne!(marks[slot as usize], block.generation);
                            marks[slot as usize] = block.generation;
                        }
                        prop_assert_ne!(block.generation, 0);
                        live.push((block.first, count));
                    },
                    1 => if !live.is_empty() {
                        let (first, count) = live.swap_remove(pick.index(live.len()));
                        blocks.release(first, count);
                    },
                    _ => { blocks.quarantine().begin(); blocks.settle(); }
                }
                prop_assert_eq!(blocks.used(), live.iter().map(|block| block.1).sum::<u32>());
            }
            for (first, count) in live.drain(..) {
                blocks.release(first, count);
            }
            blocks.quarantine().begin();
            blocks.settle();
            // All came back in one piece.
            prop_assert!(blocks.allocate(256).is_some());
        }
    }

    #[test]
    fn released_space_is_not_given_out_before_the_wait() {
        let mut blocks = Blocks::new(4);
        let block = blocks.allocate(4).unwrap();
        blocks.release(block.first, 4);
        assert_eq!(blocks.allocate(1), None);
        blocks.quarantine().begin();
        blocks.settle();
        assert!(blocks.allocate(4).is_some());
    }

    #[test]
    fn the_generation_skips_zero_and_those_in_the_slots() {
        let mut blocks = Blocks::new(1);
        blocks.generation = u16::MAX;
        blocks.note_generation(0, 1);
        assert_eq!(blocks.allocate(1).unwrap().generation, 2);
    }
}
