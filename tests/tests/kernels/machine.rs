//! An emulated machine, and what it writes to its console.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// One processor, emulated in one thread: with more of them, Linux 6.12 dies of int3 while it
/// patches itself.
const QEMU: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-smp",
    "1",
    "-m",
    "1536",
    "-cpu",
    "max",
    "-nographic",
    "-no-reboot",
    "-nic",
    "none",
];
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 loglevel=4";
/// Lines of the console that a failure shows; all of them are in a file.
const TAIL: usize = 60;

/// What a machine wrote until it ended, and when.
pub(crate) struct Console {
    lines: Vec<(Duration, String)>,
    in_time: bool,
}

/// Boots the kernel and waits until the machine is switched off, or the time is over.
pub(crate) fn run(kernel: &Path, arguments: &str, initramfs: &[u8], deadline: Duration) -> Console {
    let mut archive = tempfile::NamedTempFile::new().expect("a temporary file");
    archive.write_all(initramfs).expect("room for the initramfs");
    let mut child = Command::new("qemu-system-x86_64")
        .args(QEMU)
        .args(["-append", &format!("{KERNEL_ARGUMENTS} {arguments}"), "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(archive.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap_or_else(|err| panic!("qemu-system-x86_64: {err}; Debian's qemu-system-x86 has it"));
    let output = child.stdout.take().expect("its output is a pipe");
    let (lines, inbox) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let began = Instant::now();
    let mut console = Console { lines: Vec::new(), in_time: true };
    loop {
        match inbox.recv_timeout(deadline.saturating_sub(began.elapsed())) {
            Ok(line) => console.lines.push((began.elapsed(), line.trim_end().to_owned())),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                console.in_time = false;
                break;
            }
        }
    }
    // A machine that has ended takes no harm.
    let _ = child.kill();
    let _ = child.wait();
    drop(inbox);
    let _ = reader.join();
    console
}

impl Console {
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|(_, line)| line.as_str())
    }

    /// All of it, with the seconds since the machine was started.
    pub(crate) fn log(&self) -> String {
        log(&self.lines)
    }

    pub(crate) fn tail(&self) -> String {
        log(&self.lines[self.lines.len().saturating_sub(TAIL)..])
    }

    /// Fine if `kernel-init` came to its end and has found nothing wrong.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if !self.in_time {
            return Err("the machine was not done in time".into());
        }
        let failures: Vec<&str> = self.lines().filter(|line| line.contains(": FAILED: ")).collect();
        if !failures.is_empty() {
            return Err(failures.join("; "));
        }
        let end = self.lines().find_map(|line| line.strip_prefix("kernel-init: "));
        match end {
            Some(counts) if counts.ends_with(" passed, 0 failed") => Ok(()),
            Some(counts) => Err(counts.to_owned()),
            None => Err("the machine ended before its checks did".into()),
        }
    }
}

fn log(lines: &[(Duration, String)]) -> String {
    let line = |(at, text): &(Duration, String)| format!("{:7.1} {text}\n", at.as_secs_f64());
    lines.iter().map(line).collect()
}
