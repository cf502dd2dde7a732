//! The object, loaded with maps of its own that are pinned nowhere.

use std::{
    cell::Cell,
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Mutex,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, PerCpuArray},
    programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp},
};
use datapath::{counter::Hook, flow_cache::LINES, tunnel::Traffic};

use crate::machine::Sizes;

/// What a packet's Ethernet header is before a program runs: for `lo`, on which test runs take
/// place, and from elsewhere.
pub(crate) const ETHERNET: [u8; 12] = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2];

/// Objects that are loaded and not in use: loading one takes most of a case's time.
static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

thread_local! {
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// A key or value as it lies in a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Row<T>(pub(crate) T);

// SAFETY: only used with keys and values of the crate `datapath`, which are `Pod` themselves;
// generic code cannot say so.
unsafe impl<T: Copy + 'static> Pod for Row<T> {}

pub(crate) struct Loaded {
    object: Object,
    pub(crate) sizes: Sizes,
    ebpf: Ebpf,
    maps: HashMap<String, OwnedFd>,
    pub(crate) drops: PerCpuArray<MapData, u64>,
}

/// Which of the objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Object {
    Proxy,
    Overlay,
}

impl Object {
    fn path(self) -> PathBuf {
        let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf");
        let all =
            std::env::var_os("MILLRACE_BPF_OBJECTS").map_or_else(|| built.into(), PathBuf::from);
        all.join(match self {
            Self::Proxy => "proxy.o",
            Self::Overlay => "overlay.o",
        })
    }

    /// The programs that cases run.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Proxy => {
                &["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress", "flow_sweep"]
            }
            Self::Overlay => &[
                "bypass_ingress",
                "decap_ingress",
                "tunnel_egress",
                "tunnel_ingress",
                "masq_egress",
                "flow_sweep",
            ],
        }
    }

    /// The maps that cases fill and read, beside those of flows.
    fn maps(self) -> &'static [&'static str] {
        match self {
            Self::Proxy => &[
                "FRONTENDS4",
                "FRONTENDS6",
                "ADDRESSES4",
                "ADDRESSES6",
                "SERVICES",
                "BACKENDS4",
                "BACKENDS6",
                "STATS",
                "AFFINITY4",
                "AFFINITY6",
                "RANGES4",
                "RANGES6",
                "LOADS",
                "RATES",
                "SERVICENETS4",
                "SERVICENETS6",
                "SERVICECOVER",
                "BYPASSCGROUPS",
                "SETTINGS",
                "ADDRESSMARKS",
                "PORTMARKS",
                "NAMES",
                "UPLINKS",
                "NEXTHOPS4",
                "NEXTHOPS6",
                "SEENSENDERS",
                "FLOWCACHE4",
                "FLOWCACHE6",
                "FLOWCHANGES",
                "FLOWCOMMON4",
                "FLOWCOMMON6",
                "HOMES4",
                "HOMES6",
                "TUNNELS",
                "VTEPS4",
                "VTEPS6",
                "SENDERS",
            ],
            Self::Overlay => &[
                "POLICIES",
                "TUNNELS",
                "VTEPS4",
                "VTEPS6",
                "SENDERS",
                "HOMES4",
                "HOMES6",
                "PROXYMARKS",
                "TRAFFIC",
            ],
        }
    }
}

/// The maps of flows, which both objects have.
const FLOW_MAPS: [&str; 9] = [
    "FLOWS4",
    "FLOWS6",
    "PENDING4",
    "PENDING6",
    "FRAGMENTS4",
    "FRAGMENTS6",
    "DEVICES",
    "MARKS",
    "WALKS",
];

impl Loaded {
    /// An object whose tables of flows have these sizes, used before or not; and the calling
    /// thread in a network namespace of its own, in which nobody else has sockets.
    pub(crate) fn take(object: Object, sizes: Sizes) -> Self {
        if !APART.replace(true) {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        }
        let mut idle = IDLE.lock().expect("no case panics while it holds the lock");
        let fits = |loaded: &Self| (loaded.object, loaded.sizes) == (object, sizes);
        if let Some(at) = idle.iter().position(fits) {
            return idle.swap_remove(at);
        }
        drop(idle);
        Self::load(object, sizes)
    }

    pub(crate) fn give_back(self) {
        IDLE.lock().expect("no case panics while it holds the lock").push(self);
    }

    fn load(object: Object, sizes: Sizes) -> Self {
        let path = object.path();
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|err| panic!("{}: {err}; run `cargo xtask build`", path.display()));
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for family in ["4", "6"] {
            for (name, size) in [
                ("FLOWS", sizes.flows),
                ("PENDING", sizes.pending),
                ("PEERS", 64),
                ("AFFINITY", 4_096),
                // Large, and only cases of whole frames, whose tables are the default's, look there.
                ("FLOWCACHE", if sizes == Sizes::default() { LINES as usize } else { 1 }),
            ] {
                // The loader keeps the name for as long as it lives.
                let name: &'static str = Box::leak(format!("{name}{family}").into_boxed_str());
                loader.map_max_entries(name, size as u32);
            }
        }
        let mut ebpf = loader.load(&bytes).expect("the object loads");
        for name in object.programs() {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).expect("a program").try_into().expect("a classifier");
            program.load().expect("the verifier accepts the program");
        }
        if object == Object::Proxy {
            let program: &mut Xdp = ebpf
                .program_mut("xdp_ingress")
                .expect("a program")
                .try_into()
                .expect("one of frames");
            program.load().expect("the verifier accepts the program");
        }
        let duplicate = |name: &str| {
            let (Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data)) = ebpf.map(name).unwrap_or_else(|| panic!("no map {name}"))
            else {
                panic!("map {name} is of another kind");
            };
            data.fd().as_fd().try_clone_to_owned().expect("a descriptor")
        };
        let maps = FLOW_MAPS
            .iter()
            .chain(object.maps())
            .map(|name| ((*name).to_owned(), duplicate(name)))
            .collect();
        let drops = ebpf.take_map("DROPS").expect("a map");
        let drops = PerCpuArray::try_from(drops).expect("counters");
        Self { object, sizes, ebpf, maps, drops }
    }

    /// A descriptor of a map, for the caller to keep.
    pub(crate) fn map(&self, name: &str) -> OwnedFd {
        self.maps[name].as_fd().try_clone_to_owned().expect("a descriptor")
    }

    pub(crate) fn classifier(&self, name: &str) -> &SchedClassifier {
        self.ebpf.program(name).expect("a program").try_into().expect("a classifier")
    }

    /// The program that sees frames before they are socket buffers.
    pub(crate) fn wire(&self) -> &Xdp {
        self.ebpf.program("xdp_ingress").expect("a program").try_into().expect("one of frames")
    }

    pub(crate) fn program(&self, hook: Hook) -> &SchedClassifier {
        self.classifier(match (self.object, hook) {
            (Object::Overlay, Hook::UplinkIngress) => "decap_ingress",
            (Object::Overlay, Hook::UplinkEgress) => "masq_egress",
            _ => hook.name(),
        })
    }

    /// Rows of `TRAFFIC`, one a processor.
    pub(crate) fn traffic(&self) -> Vec<Traffic> {
        let map = MapData::from_fd(self.map("TRAFFIC")).and_then(Map::from_map_data);
        let table: PerCpuArray<_, Row<Traffic>> =
            map.and_then(PerCpuArray::try_from).expect("counters");
        table.get(&0, 0).expect("a row").iter().map(|row| row.0).collect()
    }

    pub(crate) fn sweep(&self) {
        test_run(self.classifier("flow_sweep"), &mut 0, &[0; 64], &mut [0; 64]);
    }
}

/// Size of `struct __sk_buff`, and where fields stand in it.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;

/// Runs a program on a frame that has a mark, which is then the one that the frame left with; what it
/// returned, and how long the frame is in `out`.
pub(crate) fn test_run(
    program: &SchedClassifier,
    mark: &mut u32,
    frame: &[u8],
    out: &mut [u8],
) -> (i32, usize) {
    test_run_segmented(program, mark, 0, frame, out)
}

/// The same of a GSO packet, of which the kernel does not know by which protocol it is one.
pub(crate) fn test_run_segmented(
    program: &SchedClassifier,
    mark: &mut u32,
    segment: u32,
    frame: &[u8],
    out: &mut [u8],
) -> (i32, usize) {
    let mut context = [0; CONTEXT];
    for (at, number) in [(MARK, *mark), (GSO_SIZE, segment)] {
        context[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    let mut left = [0; CONTEXT];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ctx_in: (*mark | segment != 0).then_some(&context),
            ctx_out: Some(&mut left),
            repeat: 1,
            ..TestRunOptions::default()
        })
        .unwrap_or_else(|err| panic!("test run of {} bytes: {err:?}", frame.len()));
    *mark = u32::from_ne_bytes(left[MARK..MARK + 4].try_into().expect("four bytes"));
    (result.return_value.cast_signed(), result.data_size_out as usize)
}

/// Runs a program on a frame that came in by a device of the caller's namespace; what it returned,
/// and what the frame is then.
pub(crate) fn test_run_at(program: &SchedClassifier, device: u32, frame: &[u8]) -> (i32, Vec<u8>) {
    let mut context = [0; CONTEXT];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&device.to_ne_bytes());
    let (returned, out) = test_run_with(program, &context, frame);
    (returned.cast_signed(), out)
}

/// The same of a program on the wire.
pub(crate) fn test_run_wire(program: &Xdp, device: u32, frame: &[u8]) -> (u32, Vec<u8>) {
    // `struct xdp_md`: where data begins, ends, and what stands before it; the device and its queue;
    // the device that it leaves by.
    let context = [0, frame.len() as u32, 0, device, 0, 0].map(u32::to_ne_bytes).concat();
    test_run_with(program, &context, frame)
}

/// Both, with what the kernel is to know of the frame.
fn test_run_with<P>(program: &P, context: &[u8], frame: &[u8]) -> (u32, Vec<u8>)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; frame.len() + 256];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            repeat: 1,
            ..TestRunOptions::default()
        })
        .unwrap_or_else(|err| panic!("test run of {} bytes: {err:?}", frame.len()));
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}
