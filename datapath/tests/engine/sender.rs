//! Packets sent through a machine, and what holds of every packet checked at every packet.

use std::marker::PhantomData;

use datapath::{
    address::Be16,
    counter::{Hook, Reason},
    host::verify::{Expect, checksums, describe, difference},
    packet::Verdict,
    tables::Store,
};

use crate::{machine::Side, plan::Row};

/// What packets can be sent through.
pub(crate) trait Runs<F: Side> {
    fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>);
    /// What a hook has counted, by reason.
    fn drops(&mut self, hook: Hook) -> Vec<u64>;
    fn rows(&mut self, store: Store) -> Vec<Row<F>>;
}

pub(crate) struct Sender<F, M> {
    pub(crate) machine: M,
    family: PhantomData<F>,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) bytes: Vec<u8>,
}

impl<F: Side, M: Runs<F>> Sender<F, M> {
    pub(crate) fn new(machine: M) -> Self {
        Self { machine, family: PhantomData }
    }

    /// Sends a packet over a hook. What goes on has right checksums if it came with such; what
    /// does not is counted once.
    #[track_caller]
    pub(crate) fn run(&mut self, hook: Hook, bytes: &[u8]) -> Outcome {
        let before: u64 = self.machine.drops(hook).iter().sum();
        let (verdict, out) = self.machine.run(hook, bytes);
        let counted = self.machine.drops(hook).iter().sum::<u64>() - before;
        let expected = u64::from(verdict != Verdict::Pass);
        assert_eq!(counted, expected, "{verdict:?} of {}", describe::<F>(bytes));
        if checksums::<F>(bytes, Expect::Full).is_ok() && verdict != Verdict::Drop {
            let sums = checksums::<F>(&out, Expect::Full);
            assert_eq!(sums, Ok(()), "{}\nbecame {}", describe::<F>(bytes), describe::<F>(&out));
        }
        Outcome { verdict, bytes: out }
    }

    /// Sends a packet that must go on as another.
    #[track_caller]
    pub(crate) fn becomes(&mut self, hook: Hook, bytes: &[u8], expected: &[u8]) {
        let outcome = self.run(hook, bytes);
        assert_eq!(outcome.verdict, Verdict::Pass, "of {}", describe::<F>(bytes));
        same::<F>(expected, &outcome.bytes);
    }

    /// Sends a packet that must go on as it is.
    #[track_caller]
    pub(crate) fn passes(&mut self, hook: Hook, bytes: &[u8]) {
        self.becomes(hook, bytes, bytes);
    }

    /// Sends a packet that must be dropped for a reason.
    #[track_caller]
    pub(crate) fn drops(&mut self, hook: Hook, bytes: &[u8], reason: Reason) {
        let before = self.dropped(hook, reason);
        let outcome = self.run(hook, bytes);
        assert_eq!(outcome.verdict, Verdict::Drop, "of {}", describe::<F>(bytes));
        assert_eq!(self.dropped(hook, reason), before + 1, "counted as {reason:?}");
    }

    /// Sends a packet that must be answered for a reason, and returns the answer.
    #[track_caller]
    pub(crate) fn answers(&mut self, hook: Hook, bytes: &[u8], reason: Reason) -> Vec<u8> {
        let before = self.dropped(hook, reason);
        let outcome = self.run(hook, bytes);
        assert_eq!(outcome.verdict, Verdict::Answer, "of {}", describe::<F>(bytes));
        assert_eq!(self.dropped(hook, reason), before + 1, "counted as {reason:?}");
        outcome.bytes
    }

    pub(crate) fn dropped(&mut self, hook: Hook, reason: Reason) -> u64 {
        self.machine.drops(hook)[reason as usize]
    }

    pub(crate) fn pending(&mut self) -> Vec<Row<F>> {
        self.sorted(Store::Pending)
    }

    pub(crate) fn flows(&mut self) -> Vec<Row<F>> {
        self.sorted(Store::Answered)
    }

    fn sorted(&mut self, store: Store) -> Vec<Row<F>> {
        let mut rows = self.machine.rows(store);
        rows.sort_by_key(|(key, _)| *key);
        rows
    }

    /// How many rows there are: pending, answered.
    pub(crate) fn rows(&mut self) -> (usize, usize) {
        (self.pending().len(), self.flows().len())
    }
}

/// Compares packets, and shows them if they differ.
#[track_caller]
pub(crate) fn same<F: Side>(expected: &[u8], found: &[u8]) {
    if let Some(difference) = difference::<F>(expected, found) {
        panic!("{difference}");
    }
}

/// The ports of a packet: source and destination.
pub(crate) fn ports<F: Side>(bytes: &[u8]) -> (Be16, Be16) {
    let buffer = datapath::host::buffer::Buffer::new(bytes.to_vec());
    let header = F::header(&buffer, 0).expect("a header");
    let transport = datapath::header::transport::<F, _>(&buffer, &header).expect("ports");
    (transport.ports.src_port, transport.ports.dst_port)
}
