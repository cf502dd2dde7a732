//! `proxy-agent capture`: shows frames before and behind the program that sees them first (XDP), which
//! tcpdump cannot where they are sent out at once. That program tells of them while the command runs.

pub mod filter;
pub mod frame;
pub mod output;
pub mod packet;
pub mod pcapng;
pub mod tap;
pub mod target;

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
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
};
use aya::maps::perf::PerfEvent;
use datapath::{nexthop::Uplink, tunnel::Tunnel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::{
    filter::Filter,
    frame::{Frame, Pairs},
    output::Output,
    packet::{Content, TUNNEL_PORTS},
    tap::{Ring, Tap, TapError, monotonic},
    target::{Target, targets},
};
use crate::{config::CaptureArgs, object, show::ShowError, status, xdp};

/// Records taken from a ring before the next is looked at.
const ROUND: u32 = 4_096;
/// Between looks at the time, and at what ends the capture.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Between words to the programs that somebody captures.
const RENEW: Duration = Duration::from_secs(1);

/// Why nothing is captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
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
    #[error("the agent has made its tables anew: begin the capture again")]
    Replaced,
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
    let pins = object::pins(&args.pins.bpffs);
    // So that one who may not look, or looks in the wrong place, is told so.
    let _: MapTable<u32, Uplink> =
        MapTable::open(&pins.maps(), "UPLINKS").map_err(ShowError::from)?;
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
    let mut output = Output::open(args.write.as_deref(), args.snap_length)
        .map_err(|source| write_error(args, source))?;
    for target in &targets {
        output.declare(target.device, &target.name);
    }
    output.flush().map_err(|source| write_error(args, source))?;
    let (tap, rings) = Tap::open(&pins, args.snap_length)?;
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
    capture.run(&pins, tap, rings, &is_ended)
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
    since.saturating_sub(monotonic()).as_nanos() as u64
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
        mut tap: Tap,
        mut rings: Vec<Ring>,
        is_ended: &AtomicBool,
    ) -> Result<(), CaptureError> {
        let begin = Instant::now();
        let end = self.args.duration.map(|seconds| begin + Duration::from_secs(seconds));
        let mut renewed = begin;
        let mut is_here = true;
        let mut result = Ok(());
        while !is_ended.load(Ordering::Relaxed)
            && end.is_none_or(|end| Instant::now() < end)
            && !self.is_full()
            && result.is_ok()
            && is_here
        {
            wait(&rings)?;
            self.drain(&mut rings);
            result = self.write();
            if renewed.elapsed() > RENEW {
                renewed = Instant::now();
                tap.renew()?;
                is_here = tap.is_here(pins);
            }
        }
        tap.close()?;
        if result.is_ok() {
            self.drain(&mut rings);
            for nth in 0..self.pairs.len() {
                let alone = self.pairs[nth].let_go();
                self.judge(alone.into_iter().collect());
            }
            result = self.write();
        }
        let (written, seen, lost) = (self.written, self.seen, tap.lost());
        let hint = if lost > 0 { "; fewer with a smaller --snap-length" } else { "" };
        eprintln!("{written} frames captured of {seen} seen, {lost} lost{hint}");
        match result {
            // The reader has seen enough (`proxy-agent capture | head`).
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(()) if !is_here => Err(CaptureError::Replaced),
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
