//! Rows of `SERVICES`: which are free, and which must not be given out yet.

use std::collections::VecDeque;

use super::quarantine::Quarantine;

/// The rows of the array.
#[derive(Debug)]
pub struct Indices {
    capacity: u32,
    used: u32,
    /// Rows from here on were never used.
    next: u32,
    /// The longest free first: a flow may still count for its late owner.
    free: VecDeque<u32>,
    quarantine: Quarantine<u32>,
}

impl Indices {
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            used: 0,
            next: 0,
            free: VecDeque::new(),
            quarantine: Quarantine::default(),
        }
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    pub fn used(&self) -> u32 {
        self.used
    }

    pub fn quarantine(&mut self) -> &mut Quarantine<u32> {
        &mut self.quarantine
    }

    pub fn allocate(&mut self) -> Option<u32> {
        let index = if let Some(index) = self.free.pop_front() {
            index
        } else if self.next < self.capacity {
            self.next += 1;
            self.next - 1
        } else {
            return None;
        };
        self.used += 1;
        Some(index)
    }

    /// Takes the rows found in use at start, in ascending order.
    pub fn reserve(&mut self, indices: impl IntoIterator<Item = u32>) {
        for index in indices {
            self.free.extend(self.next..index);
            self.next = index + 1;
            self.used += 1;
        }
    }

    /// Gives a row back, to be used again after the next wait.
    pub fn release(&mut self, index: u32) {
        self.used -= 1;
        self.quarantine.put(index);
    }

    /// True if something was given back since the last wait began.
    pub fn needs_wait(&self) -> bool {
        self.quarantine.has_fresh()
    }

    /// The wait is over for what was given back before it began.
    pub fn settle(&mut self) {
        let settled = self.quarantine.take_settled();
        self.free.extend(settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_rows_found_are_free() {
        let mut indices = Indices::new(4);
        indices.reserve([1, 3]);
        assert_eq!(indices.allocate(), Some(0));
        assert_eq!(indices.allocate(), Some(2));
        assert_eq!(indices.allocate(), None);
        indices.release(3);
        assert_eq!(indices.allocate(), None);
        indices.quarantine().begin();
        indices.settle();
        assert_eq!(indices.allocate(), Some(3));
    }
}
