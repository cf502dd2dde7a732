//! What was taken out of use while programs may still read it.

/// Things that wait for running programs to end. A wait that began before a thing was put here
/// does not count for it.
#[derive(Debug)]
pub struct Quarantine<T> {
    fresh: Vec<T>,
    waiting: Vec<T>,
}

impl<T> Default for Quarantine<T> {
    fn default() -> Self {
        Self { fresh: Vec::new(), waiting: Vec::new() }
    }
}

impl<T> Quarantine<T> {
    pub fn put(&mut self, thing: T) {
        self.fresh.push(thing);
    }

    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.waiting.is_empty()
    }

    /// True if a wait that begins now would do any good.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// A wait begins.
    pub fn begin(&mut self) {
        self.waiting.append(&mut self.fresh);
    }

    /// The wait has ended: what it was for.
    pub fn take_settled(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting)
    }
}
