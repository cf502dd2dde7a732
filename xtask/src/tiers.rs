//! `cargo xtask test`: the tiers one after the other, and one line that sums them up.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use clap::ValueEnum;

use crate::{
    agents, architecture::Architecture, command, image, kernels, machine::Machine, object, peers,
    setup, tally::Tally, tidy,
};

/// Is there once the module `br_netfilter` is.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A line is printed after this long without one.
const QUIET: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Tier {
    /// Format, lints and licences, and all that needs no root
    Unit,
    /// Loaded programs, bytes in and bytes out, here and on older kernels
    Packet,
    /// Nodes and pods as namespaces, real sockets
    Lab,
    /// Beside what real clusters run: flanneld, kube-apiserver and kube-proxy, where Go is at hand to
    /// build them; and what clusters are told of the agents by
    Cluster,
    /// All of Kubernetes' own tests of networks that a cluster of three nodes can run, where the tier
    /// cluster runs those of conformance; only if named
    NetworkE2e,
}

/// What a run without a name holds.
const ALL: [Tier; 4] = [Tier::Unit, Tier::Packet, Tier::Lab, Tier::Cluster];

/// Runs the tiers, those of [`ALL`] unless one is named; fails if a test did.
pub(crate) fn run(machine: &Machine, tier: Option<Tier>) -> Result<()> {
    let tiers: &[Tier] = match &tier {
        Some(tier) => std::slice::from_ref(tier),
        None => &ALL,
    };
    let prepared = prepare(machine, tiers)?;
    let mut tally = Tally::default();
    for tier in tiers {
        tally += match tier {
            Tier::Unit => unit(machine)?,
            Tier::Packet => packet(machine, &prepared.environment)?,
            Tier::Lab => lab(machine, &prepared.environment)?,
            Tier::Cluster => cluster(machine, &prepared)?,
            Tier::NetworkE2e => network_e2e(machine, &prepared)?,
        };
    }
    println!("\n{tally}");
    if tally.failed > 0 {
        bail!("tests failed; their output is above");
    }
    if tally.skipped > 0 && env::var_os("CI").is_some() {
        bail!("tests were skipped, which CI does not accept");
    }
    Ok(())
}

/// What the privileged tiers load and run, so that building is no test's time.
#[derive(Default)]
struct Prepared {
    environment: Vec<(&'static str, String)>,
    /// Why the cluster tier cannot run.
    no_peer: Option<String>,
    /// Why its part about images and manifests cannot.
    no_image: Option<String>,
    /// Why its part that has kubelets cannot.
    no_kubelet: Option<String>,
}

fn prepare(machine: &Machine, tiers: &[Tier]) -> Result<Prepared> {
    let has = |tier| tiers.contains(&tier);
    let has_cluster = has(Tier::Cluster) || has(Tier::NetworkE2e);
    let root = || setup::root("all tiers but unit load eBPF programs");
    if has(Tier::Packet) || has(Tier::Lab) {
        // Said before anything is built.
        root()?;
    }
    let no_peer = has_cluster.then(|| absent_peer(machine)).flatten();
    let has_lab = has(Tier::Lab) || has_cluster && no_peer.is_none();
    if !has_lab && !has(Tier::Packet) {
        return Ok(Prepared { no_peer, ..Prepared::default() });
    }
    root()?;
    machine.provide(&setup::tiers())?;
    if has_cluster {
        machine.provide(&setup::peers())?;
    }
    let objects = object::build(machine)?;
    if has_lab {
        agents::build_with_peer(machine, &objects)?;
    } else {
        // The kernels tier boots one that the agents run on.
        agents::build(machine, &objects, agents::Profile::Release)?;
    }
    let (mut no_image, mut no_kubelet) = (None, None);
    if has_cluster && no_peer.is_none() {
        // All that images are for, unless they are only run here.
        let host = [Architecture::host()?];
        let processors = if has(Tier::Cluster) { &PROCESSORS[..] } else { &host };
        no_image = absent_tool(machine, processors);
        no_kubelet = no_image.clone().or_else(|| absent_runtime(machine));
        if no_image.is_none() {
            image::build(machine, processors, None)?;
        }
        if no_kubelet.is_none() {
            let peers = peers::provide(machine, &["coredns", "agnhost", "regression-issue-74839"])?;
            image::build_pods(machine, &peers)?;
            image::build_e2e(machine, &peers)?;
        }
    }
    let environment =
        vec![("MILLRACE_BPF_OBJECTS", text(&objects)), ("MILLRACE_DIST", text(&machine.dist()))];
    Ok(Prepared { environment, no_peer, no_image, no_kubelet })
}

/// Those that images are for.
const PROCESSORS: [Architecture; 2] = [Architecture::Amd64, Architecture::Arm64];

/// Why flanneld, kube-apiserver or kube-proxy cannot run, if one cannot. That is no failure: a
/// machine without Go, or without a network to fetch modules by, can run all other tests.
fn absent_peer(machine: &Machine) -> Option<String> {
    if !Path::new(BRIDGE_NETFILTER).exists() {
        return Some("flanneld needs the kernel's bridge netfilter: modprobe br_netfilter".into());
    }
    peers::provide_all(machine).err().map(|err| format!("{err:#}"))
}

/// Why no images can be built, if none can. That is no failure either.
fn absent_tool(machine: &Machine, processors: &[Architecture]) -> Option<String> {
    let tools = machine.provide(&setup::images());
    let tools = tools.and_then(|()| {
        processors.iter().try_for_each(|&processor| agents::provide(machine, processor))
    });
    tools.err().map(|err| format!("{err:#}"))
}

/// Why no kubelet can run pods here, if none can.
fn absent_runtime(machine: &Machine) -> Option<String> {
    let needs = setup::kubelet().into_iter().chain(setup::e2e()).collect::<Vec<_>>();
    if let Err(err) = machine.provide(&needs) {
        return Some(format!("{err:#}"));
    }
    // Tried and not guessed: within a container, one or the other may be forbidden.
    let probe = "t=$(mktemp -d) && mount -t tmpfs tmpfs $t && mkdir $t/upper $t/work && \
                 mount -t overlay overlay -o lowerdir=/etc,upperdir=$t/upper,workdir=$t/work /etc && \
                 mount -t cgroup2 cgroup2 $t/upper && mount -t bpf bpf $t/upper; s=$?; \
                 umount -l $t; rmdir $t; exit $s";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "sh", "-c", probe]);
    let said = command::read(&mut unshare).err()?;
    Some(format!("a node with a kubelet has file systems of its own: {said:#}"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn unit(machine: &Machine) -> Result<Tally> {
    heading("unit");
    let tidy = tidy::run(machine)?;
    let mut cargo = machine.cargo();
    // What needs root is run by the other tiers.
    cargo.args(["test", "--no-fail-fast", "--workspace", "--exclude", "tests"]);
    cargo.args(["--features", agents::ETCD]);
    let test = cargo.args(["--", "--skip", PRIVILEGED]);
    Ok(tidy + cargo_test(test, "unit")?)
}

/// In the name of each test of these packages that needs root.
const PRIVILEGED: &str = "in_kernel_arrays";

fn packet(machine: &Machine, environment: &[(&str, String)]) -> Result<Tally> {
    heading("packet");
    let mut cargo = machine.cargo();
    let here = privileged(&mut cargo, "packet", environment);
    let mut here = cargo_test(here, "packet")?;
    let mut cargo = machine.cargo();
    let swap = ["test", "--package", "proxy-agent", "--test", "swap", "--", "--ignored"];
    here += cargo_test(cargo.args(swap), "packet")?;
    if !has_test(machine, "kernels")? {
        println!("packet: older kernels are not tested: there is no such test yet");
        return Ok(here);
    }
    let images = kernels::provide(machine)?;
    let mut cargo = machine.cargo();
    let older = privileged(&mut cargo, "kernels", environment).env("MILLRACE_KERNELS", images);
    Ok(here + cargo_test(older, "kernels")?)
}

/// Cases measure time: no more of them at once than there are processors.
fn lab(machine: &Machine, environment: &[(&str, String)]) -> Result<Tally> {
    heading("lab");
    let mut cargo = machine.cargo();
    let test = privileged(&mut cargo, "lab", environment);
    let services = cargo_test(test.args(["--", "--test-threads=2"]), "lab")?;
    let mut cargo = machine.cargo();
    let test = privileged(&mut cargo, "overlay", environment);
    let overlays = cargo_test(test.args(["--", "--test-threads=2"]), "lab")?;
    let mut cargo = machine.cargo();
    let watch = cargo_test(privileged(&mut cargo, "watch", environment), "lab")?;
    Ok(services + overlays + watch)
}

/// Cases measure gaps, which others at the same time would widen.
fn cluster(machine: &Machine, prepared: &Prepared) -> Result<Tally> {
    heading("cluster");
    if let Some(reason) = &prepared.no_peer {
        println!("cluster: not run: {reason}");
        return Ok(Tally::default());
    }
    let mut cargo = machine.cargo();
    let test = privileged(&mut cargo, "interop", &prepared.environment);
    let interop = cargo_test(test.args(["--", "--test-threads=1"]), "cluster")?;
    if let Some(reason) = &prepared.no_image {
        println!("cluster: images and manifests are not tried: {reason}");
        return Ok(interop);
    }
    let mut cargo = machine.cargo();
    let deploy = privileged(&mut cargo, "deploy", &prepared.environment);
    let deploy = cargo_test(deploy, "cluster")?;
    if let Some(reason) = &prepared.no_kubelet {
        println!("cluster: the agents are not tried under kubelets: {reason}");
        return Ok(interop + deploy);
    }
    let mut cargo = machine.cargo();
    let test = privileged(&mut cargo, "cluster", &prepared.environment);
    let kubelets = cargo_test(test.args(["--", "--test-threads=1"]), "cluster")?;
    Ok(interop + deploy + kubelets)
}

/// Who asks for this tier wants it, so that what it lacks is an error.
fn network_e2e(machine: &Machine, prepared: &Prepared) -> Result<Tally> {
    heading("network-e2e");
    let lacking = [&prepared.no_peer, &prepared.no_image, &prepared.no_kubelet];
    if let Some(reason) = lacking.into_iter().flatten().next() {
        bail!("network-e2e: cannot run: {reason}");
    }
    let mut cargo = machine.cargo();
    let test = privileged(&mut cargo, "network-e2e", &prepared.environment);
    cargo_test(test.args(["--", "--test-threads=1", "--nocapture"]), "network-e2e")
}

fn heading(tier: &str) {
    println!("\n== {tier} ==");
}

fn privileged<'a>(
    cargo: &'a mut Command,
    target: &str,
    environment: &[(&str, String)],
) -> &'a mut Command {
    cargo.args(["test", "--no-fail-fast", "--package", "tests", "--test", target]);
    cargo.envs(environment.iter().map(|(name, value)| (name, value)))
}

/// Whether the crate of privileged tests has a target of that name.
fn has_test(machine: &Machine, name: &str) -> Result<bool> {
    let manifest = machine.root.join("tests/Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec()?;
    let mut targets = metadata.packages.iter().flat_map(|package| &package.targets);
    Ok(targets.any(|target| target.is_test() && target.name == name))
}

/// Runs `cargo test` with its output shown, and adds up what its binaries say at their end.
fn cargo_test(cargo: &mut Command, tier: &str) -> Result<Tally> {
    let line = command::line(cargo);
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let output = child.stdout.take().context("its output is a pipe")?;
    let mut tally = Tally::default();
    watch(BufReader::new(output), tier, |line| {
        println!("{line}");
        if let Some(counts) = Tally::parse(line) {
            tally += counts;
        }
    });
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // A test that took its whole binary down, or one that does not compile.
        println!("`{line}` failed ({status})");
        tally += Tally::FAILURE;
    }
    Ok(tally)
}

/// Hands on each line, and says so when none has come for a while.
fn watch(output: impl BufRead + Send + 'static, tier: &str, mut line: impl FnMut(&str)) {
    let (lines, inbox) = mpsc::channel();
    thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let began = Instant::now();
    loop {
        match inbox.recv_timeout(QUIET) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) => {
                println!("{tier}: still running after {} s", began.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
