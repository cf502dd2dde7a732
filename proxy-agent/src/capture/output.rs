//! Where captured frames go: lines for people, or a file for tcpdump and Wireshark.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use super::{
    frame::{Frame, Line},
    packet::Content,
    pcapng::Writer,
};

/// Every batch is written whole, so that what ends this process leaves whole blocks.
pub struct Output {
    /// `None` makes lines.
    writer: Option<Writer>,
    to: Box<dyn Write>,
    batch: Vec<u8>,
}

impl Output {
    /// Standard output, or the file if it is not called `-`.
    pub fn open(write: Option<&Path>, snap_length: u32) -> io::Result<Self> {
        let mut batch = Vec::new();
        let writer = write.is_some().then(|| Writer::new(snap_length, &mut batch));
        let to: Box<dyn Write> = match write {
            Some(path) if path != Path::new("-") => Box::new(File::create(path)?),
            _ => Box::new(io::stdout().lock()),
        };
        Ok(Self { writer, to, batch })
    }

    pub fn declare(&mut self, device: u32, name: &str) {
        if let Some(writer) = &mut self.writer {
            writer.declare(device, name, &mut self.batch);
        }
    }

    /// `lost` frames were lost before this one.
    pub fn add(&mut self, frame: &Frame, content: &Content, device: &str, lost: u64) {
        if let Some(writer) = &mut self.writer {
            writer.declare(frame.device, device, &mut self.batch);
            writer.frame(frame, lost, &mut self.batch);
        } else {
            let line = Line { frame, device, content };
            self.batch.extend(format!("{line}\n").as_bytes());
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.to.write_all(&self.batch).and_then(|()| self.to.flush());
        self.batch.clear();
        result
    }
}
