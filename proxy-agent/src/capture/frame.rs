//! A captured frame: before the program or behind it, and what the program said.

use std::fmt;

use clap::ValueEnum;
use datapath::capture::{Seen, UNDECIDED};
use jiff::Timestamp;

use super::packet::Content;

/// Where a frame was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Before the program, as it came in by the device.
    In,
    /// Behind it, as it left.
    Out,
}

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// What became of a frame.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To the kernel, as it was or changed
    Passed,
    /// Out by a device at once
    Sent,
    /// Nowhere
    Dropped,
}

impl Verdict {
    /// By `enum xdp_action`.
    pub const fn of(action: u32) -> Self {
        match action {
            2 => Self::Passed,
            3 | 4 => Self::Sent,
            _ => Self::Dropped,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Sent => "sent",
            Self::Dropped => "dropped",
        }
    }
}

/// One frame on one side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Interface index of the device that it came in by.
    pub device: u32,
    pub side: Side,
    /// The program's answer (`enum xdp_action`), if it is known.
    pub action: Option<u32>,
    /// The same of what went in and what came out of that.
    pub number: u64,
    /// Whole.
    pub length: u32,
    /// As far as it was captured.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Reads what a program told. `epoch` is when the programs' clock was zero, in nanoseconds since 1970.
    pub fn read(record: &[u8], epoch: u64) -> Option<Self> {
        let (head, rest) = record.split_at_checked(size_of::<Seen>())?;
        let word = |at: usize| head.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word));
        let time = u64::from_ne_bytes(*head.first_chunk()?);
        let verdict = word(20)?;
        Some(Self {
            time: epoch.wrapping_add(time),
            device: word(8)?,
            side: if verdict == UNDECIDED { Side::In } else { Side::Out },
            action: (verdict != UNDECIDED).then_some(verdict),
            number: 0,
            length: word(12)?,
            bytes: rest.get(..word(16)? as usize)?.to_vec(),
        })
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.action.map(Verdict::of)
    }
}

/// A frame for people, in one line.
#[derive(Debug)]
pub struct Line<'a> {
    pub frame: &'a Frame,
    pub device: &'a str,
    pub content: &'a Content,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frame, device, content } = self;
        let time = Timestamp::from_nanosecond(frame.time.into()).unwrap_or_default();
        let time = time.strftime("%H:%M:%S.%9f");
        let (side, length) = (frame.side.name(), frame.length);
        let verdict = frame.verdict().map_or("-", Verdict::name);
        write!(f, "{time} {device} {side:<3} {verdict:<7} {content} length {length}")
    }
}

/// Puts together what went into the program and what came out: on a processor frames go through it one by
/// one.
#[derive(Debug, Default)]
pub struct Pairs {
    waiting: Option<Frame>,
    last: u64,
}

impl Pairs {
    /// Frames of this processor have numbers of their own.
    pub fn of(processor: usize) -> Self {
        Self { waiting: None, last: (processor as u64) << 48 }
    }

    /// The next frame on this processor; gives those that are whole now, each with its other side.
    pub fn add(&mut self, frame: Frame) -> Vec<Vec<Frame>> {
        match (frame.side, self.waiting.take()) {
            (Side::In, before) => {
                self.last += 1;
                self.waiting = Some(Frame { number: self.last, ..frame });
                before.map(|before| vec![before]).into_iter().collect()
            }
            (Side::Out, Some(before)) if before.device == frame.device => {
                let (action, number) = (frame.action, before.number);
                vec![vec![Frame { action, ..before }, Frame { number, ..frame }]]
            }
            (Side::Out, before) => {
                self.last += 1;
                let number = self.last;
                let before = before.map(|before| vec![before]);
                before.into_iter().chain([vec![Frame { number, ..frame }]]).collect()
            }
        }
    }

    /// One that goes without its other side, of which nothing will be heard.
    pub fn let_go(&mut self) -> Option<Frame> {
        self.waiting.take()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::capture::packet::{TUNNEL_PORTS, tests::segment};

    pub fn frame(side: Side, action: Option<u32>) -> Frame {
        let bytes = segment([10, 0, 0, 1], 1_234, [10, 0, 0, 2], 80);
        let length = bytes.len() as u32;
        Frame { time: 1_000_000_001, device: 2, side, action, number: 0, length, bytes }
    }

    #[test]
    fn a_line_tells_who_where_and_what_became_of_it() {
        let frame = frame(Side::Out, Some(3));
        let content = Content::of(&frame.bytes, &TUNNEL_PORTS);
        assert_eq!(
            Line { frame: &frame, device: "eth0", content: &content }.to_string(),
            "00:00:01.000000001 eth0 out sent    TCP 10.0.0.1:1234 > 10.0.0.2:80 [P.] length 54"
        );
    }

    #[test]
    fn what_goes_in_learns_what_became_of_it() {
        let mut pairs = Pairs::of(3);
        let (before, behind) = (frame(Side::In, None), frame(Side::Out, Some(1)));
        assert!(pairs.add(before.clone()).is_empty());
        let whole = pairs.add(behind.clone());
        let [pair] = whole.as_slice() else { panic!("{whole:?}") };
        assert_eq!(pair.len(), 2);
        assert!(pair.iter().all(|frame| frame.verdict() == Some(Verdict::Dropped)));
        assert_eq!(pair[0].number, pair[1].number);
        // Another side that is lost is not looked for among what comes later.
        assert!(pairs.add(before.clone()).is_empty());
        let alone = pairs.let_go().unwrap();
        assert_ne!(alone.number, pair[0].number);
        assert_eq!(pairs.add(behind.clone()).len(), 1);
        assert!(pairs.add(before.clone()).is_empty());
        let others = pairs.add(Frame { device: 3, ..behind });
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn a_record_is_read_and_one_that_is_cut_is_not() {
        let mut record = 5_u64.to_ne_bytes().to_vec();
        for word in [2_u32, 1_500, 3, 3, 0x0003_0201, 0] {
            record.extend(word.to_ne_bytes());
        }
        let frame = Frame::read(&record, 100).unwrap();
        assert_eq!((frame.time, frame.device, frame.length), (105, 2, 1_500));
        assert_eq!(
            (frame.bytes.as_slice(), frame.verdict()),
            (&[1, 2, 3][..], Some(Verdict::Sent))
        );
        assert!(Frame::read(&record[..25], 0).is_none());
    }
}
