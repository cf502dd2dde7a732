//! `proxy-agent capture`: shows frames before and behind the program that sees them first (XDP), which
//! tcpdump cannot where they are sent out at once. Programs of its own run around that one for as long as
//! the command does; the kernel takes them away with the process, however it ends.

pub mod filter;
pub mod frame;
pub mod output;
pub mod packet;
pub mod pcapng;
pub mod target;

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use agent_kit::{
    link::LinkError,
    object::Pins,
    table::{MapTable, Table},
    tap::{Ring, Tap, TapError, Taps},
};
use aya::maps::perf::PerfEvent;
use datapath::tunnel::Tunnel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::{
    filter::Filter,
    frame::{Frame, Pairs},
    output::Output,
    packet::{Content, TUNNEL_PORTS},
    target::{Target, program, targets},
};
use crate::{config::CaptureArgs, object, show::ShowError, status, xdp};

/// Programs of the capture object.
const BEFORE: &str = "frame_in";
const BEHIND: &str = "frame_out";

/// Of each processor's ring: what a user may lock without further rights.
const RING_PAGES: usize = 128;
/// Records taken from a ring before the next is looked at.
const ROUND: u32 = 4_096;
/// Between looks at the time, and at what ends the capture.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Between looks at which programs run.
const FOLLOW: Duration = Duration::from_millis(500);

/// Why nothing is captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("built without the capture's programs: use `cargo xtask build`")]
    NotEmbedded,
    #[error(transparent)]
    Tables(#[from] ShowError),
    #[error(transparent)]
    Links(#[from] LinkError),
    #[error(
        "XDP runs on no device (--xdp off, or `proxy-agent status` says why not), so the kernel sees \
         all frames: use tcpdump"
    )]
    Off,
    #[error("--device {0}: there is no such device; XDP runs on: {1}")]
    NoDevice(String, String),
    #[error(
        "--device {0}: XDP does not run there (`proxy-agent status` says why not), so the kernel sees \
         all its frames: use tcpdump -i {0}"
    )]
    Elsewhere(String),
    #[error(
        "the program that runs on {0} is pinned nowhere: the agent is of an older version, or ended \
         while it began; restart it"
    )]
    Unpinned(String),
    #[error("--write: cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write to standard output: {0}")]
    Print(io::Error),
    #[error("cannot wait for frames: {0}")]
    Wait(io::Error),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("cannot be told of signals: {0}")]
    Signal(#[from] ctrlc::Error),
}

/// Captures until told to end.
pub fn capture(args: &CaptureArgs) -> Result<(), CaptureError> {
    if object::CAPTURE.is_empty() {
        return Err(CaptureError::NotEmbedded);
    }
    let pins = object::pins(&args.pins.bpffs);
    let targets = chosen(targets(&pins)?, &args.device)?;
    let filter = Filter {
        // Others may have the same program.
        devices: if args.device.is_empty() {
            Vec::new()
        } else {
            targets.iter().map(|target| target.device).collect()
        },
        hosts: args.host.clone(),
        ports: args.port.clone(),
        verdicts: args.verdict.clone(),
    };
    let is_ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&is_ended);
    ctrlc::set_handler(move || end.store(true, Ordering::Relaxed))?;
    let taps = Taps::new(object::CAPTURE, args.snap_length)?;
    let rings = taps.rings(RING_PAGES)?;
    let mut taken = BTreeMap::new();
    for target in &targets {
        if !taken.contains_key(&target.program) {
            let program = program(&pins, target.program)
                .ok_or_else(|| CaptureError::Unpinned(target.name.clone()))?;
            taken.insert(target.program, taps.attach(program.as_fd(), BEFORE, BEHIND)?);
        }
    }
    let mut output = Output::open(args.write.as_deref(), args.snap_length)
        .map_err(|source| write_error(args, source))?;
    for target in &targets {
        output.declare(target.device, &target.name);
    }
    output.flush().map_err(|source| write_error(args, source))?;
    eprintln!("capturing on {}, before and behind XDP; ^C ends it", named(&targets));
    let capture = Capture {
        args,
        filter,
        output,
        tunnel_ports: tunnel_ports(args),
        pairs: (0..rings.len()).map(Pairs::of).collect(),
        epoch: epoch(),
        names: BTreeMap::new(),
        batch: Vec::new(),
        lost_before: 0,
        seen: 0,
        written: 0,
    };
    capture.run(&pins, &taps, taken, rings, &is_ended)
}

/// The devices that are asked for.
fn chosen(targets: Vec<Target>, devices: &[String]) -> Result<Vec<Target>, CaptureError> {
    if targets.is_empty() {
        return Err(CaptureError::Off);
    }
    for device in devices {
        if targets.iter().any(|target| target.name == *device) {
            continue;
        }
        return Err(if Path::new("/sys/class/net").join(device).exists() {
            CaptureError::Elsewhere(device.clone())
        } else {
            CaptureError::NoDevice(device.clone(), named(&targets))
        });
    }
    let is_chosen = |target: &Target| devices.is_empty() || devices.contains(&target.name);
    Ok(targets.into_iter().filter(is_chosen).collect())
}

/// `eth0 (native), eth1 (generic)`.
fn named(targets: &[Target]) -> String {
    let names = targets.iter().map(|target| match target.mode {
        Some(mode) => format!("{} ({})", target.name, xdp::name(mode)),
        None => target.name.clone(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// That of the overlay's tunnels, where there is an overlay.
fn tunnel_ports(args: &CaptureArgs) -> Vec<u16> {
    let maps = args.pins.bpffs.join("overlay/maps");
    let table: Option<MapTable<u32, Tunnel>> = MapTable::open(&maps, "TUNNELS").ok();
    let tunnel = table.and_then(|table| table.get(&0).ok().flatten());
    let port = tunnel.map(|tunnel| tunnel.port.get()).filter(|port| *port != 0);
    port.map_or_else(|| TUNNEL_PORTS.to_vec(), |port| vec![port])
}

/// When the programs' clock was zero, in nanoseconds since 1970.
fn epoch() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32);
    since.saturating_sub(now).as_nanos() as u64
}

fn write_error(args: &CaptureArgs, source: io::Error) -> CaptureError {
    match &args.write {
        Some(path) if path.as_os_str() != "-" => CaptureError::Write { path: path.clone(), source },
        _ => CaptureError::Print(source),
    }
}

/// A capture that is under way.
struct Capture<'a> {
    args: &'a CaptureArgs,
    filter: Filter,
    output: Output,
    tunnel_ports: Vec<u16>,
    /// By ring.
    pairs: Vec<Pairs>,
    epoch: u64,
    names: BTreeMap<u32, String>,
    /// Wanted, and yet to be written.
    batch: Vec<(Frame, Content)>,
    /// Since the last frame that was written.
    lost_before: u64,
    seen: u64,
    written: u64,
}

impl Capture<'_> {
    fn run(
        mut self,
        pins: &Pins,
        taps: &Taps,
        mut taken: BTreeMap<u32, Tap>,
        mut rings: Vec<Ring>,
        is_ended: &AtomicBool,
    ) -> Result<(), CaptureError> {
        let begin = Instant::now();
        let end = self.args.duration.map(|seconds| begin + Duration::from_secs(seconds));
        let mut followed = begin;
        let lost = taps.lost()?;
        let mut result = Ok(());
        while !is_ended.load(Ordering::Relaxed)
            && end.is_none_or(|end| Instant::now() < end)
            && !self.is_full()
            && result.is_ok()
        {
            wait(&rings)?;
            self.drain(&mut rings);
            result = self.write();
            if followed.elapsed() > FOLLOW {
                followed = Instant::now();
                follow(pins, taps, &mut taken);
            }
        }
        drop(taken);
        if result.is_ok() {
            self.drain(&mut rings);
            for nth in 0..self.pairs.len() {
                let alone = self.pairs[nth].let_go();
                self.judge(alone.into_iter().collect());
            }
            result = self.write();
        }
        let (written, seen, lost) = (self.written, self.seen, lost.sum(0));
        let hint = if lost > 0 { "; fewer with a smaller --snap-length" } else { "" };
        eprintln!("{written} frames captured of {seen} seen, {lost} lost{hint}");
        match result {
            // The reader has seen enough (`proxy-agent capture | head`).
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(|source| write_error(self.args, source)),
        }
    }

    fn is_full(&self) -> bool {
        self.args.count.is_some_and(|count| self.written >= count)
    }

    /// Takes what is in the rings.
    fn drain(&mut self, rings: &mut [Ring]) {
        for (nth, ring) in rings.iter_mut().enumerate() {
            let _ = ring.try_fold(0, |count, event| {
                match event {
                    PerfEvent::Sample { head, tail } => {
                        let record = [head, tail].concat();
                        if let Some(frame) = Frame::read(&record, self.epoch) {
                            self.seen += 1;
                            for sides in self.pairs[nth].add(frame) {
                                self.judge(sides);
                            }
                        }
                    }
                    PerfEvent::Lost { count } => {
                        self.lost_before += count;
                        let alone = self.pairs[nth].let_go();
                        self.judge(alone.into_iter().collect());
                    }
                }
                if count < ROUND {
                    ControlFlow::Continue(count + 1)
                } else {
                    ControlFlow::Break(())
                }
            });
        }
    }

    /// Keeps both sides of a frame if it is wanted.
    fn judge(&mut self, sides: Vec<Frame>) {
        let read = |frame: Frame| {
            let content = Content::of(&frame.bytes, &self.tunnel_ports);
            (frame, content)
        };
        let sides: Vec<_> = sides.into_iter().map(read).collect();
        if self.filter.wants(&sides) {
            self.batch.extend(sides);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.sort_by_key(|(frame, _)| frame.time);
        for (frame, content) in batch {
            if self.is_full() {
                break;
            }
            let name =
                self.names.entry(frame.device).or_insert_with(|| status::device_name(frame.device));
            self.output.add(&frame, &content, name, std::mem::take(&mut self.lost_before));
            self.written += 1;
        }
        self.output.flush()
    }
}

fn wait(rings: &[Ring]) -> Result<(), CaptureError> {
    let mut waits: Vec<PollFd<'_>> =
        rings.iter().map(|ring| PollFd::new(ring, PollFlags::IN)).collect();
    match poll(&mut waits, Some(&PATIENCE)) {
        Err(err) if err != rustix::io::Errno::INTR => Err(CaptureError::Wait(err.into())),
        _ => Ok(()),
    }
}

/// Goes on with the programs that run now: an agent that is restarted puts its own in place of those
/// before.
fn follow(pins: &Pins, taps: &Taps, taken: &mut BTreeMap<u32, Tap>) {
    let Ok(targets) = targets(pins) else { return };
    taken.retain(|id, _| targets.iter().any(|target| target.program == *id));
    for target in targets {
        if taken.contains_key(&target.program) {
            continue;
        }
        // What is not pinned yet is looked for again.
        let Some(program) = program(pins, target.program) else { continue };
        match taps.attach(program.as_fd(), BEFORE, BEHIND) {
            Ok(tap) => {
                eprintln!(
                    "the agent has put another program on {}: going on with that",
                    target.name
                );
                taken.insert(target.program, tap);
            }
            Err(err) => eprintln!("{}: {err}", target.name),
        }
    }
}
