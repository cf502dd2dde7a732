//! eBPF instructions as the kernel reads them, for programs so small that they are written by hand.

/// Registers: what calls return, arguments of calls, and one that calls leave alone.
pub(crate) const R0: u8 = 0;
pub(crate) const R1: u8 = 1;
pub(crate) const R2: u8 = 2;
pub(crate) const R3: u8 = 3;
pub(crate) const R6: u8 = 6;

/// Helpers by number.
pub(crate) const RANDOM: i32 = 7;
pub(crate) const REDIRECT: i32 = 23;

/// A program in the making.
#[derive(Default)]
pub(crate) struct Code {
    words: Vec<u64>,
    /// Jumps that do not know their aim yet.
    open: Vec<usize>,
}

impl Code {
    fn put(&mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) {
        let registers = u64::from(from << 4 | to);
        let offset = u64::from(offset.cast_unsigned());
        let value = u64::from(value.cast_unsigned());
        self.words.push(u64::from(code) | registers << 8 | offset << 16 | value << 32);
    }

    pub(crate) fn set(&mut self, to: u8, value: i32) {
        self.put(0xb7, to, 0, 0, value);
    }

    pub(crate) fn copy(&mut self, to: u8, from: u8) {
        self.put(0xbf, to, from, 0, 0);
    }

    pub(crate) fn add(&mut self, to: u8, value: i32) {
        self.put(0x07, to, 0, 0, value);
    }

    pub(crate) fn add_register(&mut self, to: u8, from: u8) {
        self.put(0x0f, to, from, 0, 0);
    }

    pub(crate) fn subtract_register(&mut self, to: u8, from: u8) {
        self.put(0x1f, to, from, 0, 0);
    }

    pub(crate) fn and(&mut self, to: u8, value: i32) {
        self.put(0x57, to, 0, 0, value);
    }

    /// The lower 16 bits in the network's order.
    pub(crate) fn network_order(&mut self, register: u8) {
        self.put(0xdc, register, 0, 0, 16);
    }

    pub(crate) fn load16(&mut self, to: u8, from: u8, offset: i16) {
        self.put(0x69, to, from, offset, 0);
    }

    pub(crate) fn load32(&mut self, to: u8, from: u8, offset: i16) {
        self.put(0x61, to, from, offset, 0);
    }

    pub(crate) fn store16(&mut self, to: u8, offset: i16, from: u8) {
        self.put(0x6b, to, from, offset, 0);
    }

    /// Writes a constant.
    pub(crate) fn store32(&mut self, to: u8, offset: i16, value: i32) {
        self.put(0x62, to, 0, offset, value);
    }

    /// Adds to a number that other processors add to, too.
    pub(crate) fn add_shared(&mut self, to: u8, from: u8) {
        self.put(0xdb, to, from, 0, 0);
    }

    /// The address of the first value of an array.
    pub(crate) fn value_of(&mut self, to: u8, map: i32) {
        self.put(0x18, to, 2, 0, map);
        self.put(0, 0, 0, 0, 0);
    }

    pub(crate) fn call(&mut self, helper: i32) {
        self.put(0x85, 0, 0, 0, helper);
    }

    pub(crate) fn exit(&mut self) {
        self.put(0x95, 0, 0, 0, 0);
    }

    /// Jumps ahead if a register is greater than the other, of which both have no sign.
    pub(crate) fn jump_if_greater(&mut self, one: u8, other: u8) {
        self.open.push(self.words.len());
        self.put(0x2d, one, other, 0, 0);
    }

    pub(crate) fn jump_unless_equal(&mut self, one: u8, value: i32) {
        self.open.push(self.words.len());
        self.put(0x55, one, 0, 0, value);
    }

    /// All jumps so far come here.
    pub(crate) fn land(&mut self) {
        let here = self.words.len();
        for jump in self.open.drain(..) {
            self.words[jump] |= ((here - jump - 1) as u64) << 16;
        }
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }
}
