//! What an operator sees of frames that the kernel never sees: `proxy-agent capture`, and tcpdump on what
//! it writes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use agent_kit::table::{MapTable, Table};
use lab::{
    Process,
    agent::SocketLb,
    peer::{self, Exchange},
};
use nix::sys::signal::Signal;

use crate::{
    cluster::{Cluster, Plan, eventually, ok, show},
    service::{FAMILIES, Family, Target, expose},
    wired::Wired,
};

const BYTES: u64 = 256 << 10;

/// Runs on the first node.
struct Capture {
    process: Process,
    /// What it says of itself.
    told: PathBuf,
}

impl Capture {
    /// Begins one; returns when it captures.
    fn begin(cluster: &Cluster, name: &str, arguments: &[&str]) -> Self {
        let told = cluster.lab.directory("node1").join(format!("{name}.err"));
        let mut command = Command::new(lab::dist().join("proxy-agent"));
        command.arg("capture").args(arguments).arg("--bpffs").arg(cluster.lab.bpffs("node1"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(ok(fs::File::create(&told)));
        let process = ok(cluster.lab.spawn("node1", command));
        let mut capture = Self { process, told };
        eventually("the capture begins", || {
            assert!(capture.process.ended().is_none(), "{}", capture.told());
            capture.told().contains("capturing on eth0").then_some(())
        });
        capture
    }

    fn told(&self) -> String {
        fs::read_to_string(&self.told).unwrap_or_default()
    }

    /// Ends it as ^C does; gives what it printed and what it said of itself.
    fn end(self) -> (String, String) {
        self.process.signal(Signal::SIGINT);
        self.ended()
    }

    fn ended(self) -> (String, String) {
        let output = ok(self.process.output());
        let told = fs::read_to_string(&self.told).unwrap_or_default();
        assert!(output.status.success(), "{told}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), told)
    }
}

fn up(mode: &str) -> (Cluster, Wired) {
    let services = [expose(10, &["pod1a"]), expose(11, &["pod2a"])];
    let cluster = Plan::new(SocketLb::On).extra(&[&format!("--xdp={mode}")]).up(&services);
    let wired = ok(Wired::up(&cluster.lab));
    eventually("XDP is on", || {
        (show(&cluster.agents[0], &["status"])["xdp"][0]["mode"] == mode).then_some(())
    });
    (cluster, wired)
}

/// Has bytes go from the client to a pod of the second node, by the first, and back.
fn exchange(cluster: &Cluster, family: Family) -> SocketAddr {
    let to = Target::NodePort("node1", 11).address(&cluster.lab, family);
    assert_eq!(ok(peer::exchange(&cluster.place("client"), to, BYTES)), Exchange::whole(BYTES));
    to
}

/// Whether the programs look for somebody who captures.
fn is_told(cluster: &Cluster) -> bool {
    let maps = cluster.lab.bpffs("node1").join("proxy/maps");
    let table: MapTable<u32, datapath::capture::Capture> = ok(MapTable::open(&maps, "CAPTURE"));
    ok(table.get(&0)).is_some_and(|row| row.until != 0)
}

fn tcpdump(file: &Path) -> String {
    let output: Output =
        ok(Command::new("tcpdump").args(["-n", "--nano", "-tt", "-r"]).arg(file).output());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both legs stand there on both sides, in lines and in a file.
fn shows(mode: &str) {
    let (cluster, _wired) = up(mode);
    assert!(!is_told(&cluster));
    for family in FAMILIES {
        let file = cluster.lab.directory("node1").join("both.pcapng");
        let path = file.display().to_string();
        let written = Capture::begin(&cluster, "written", &["--write", &path]);
        assert!(is_told(&cluster));
        let node_port = exchange(&cluster, family);
        let (nothing, told) = written.end();
        assert_eq!(nothing, "");
        assert!(!is_told(&cluster));
        let shown = Capture::begin(&cluster, "shown", &["-i", "eth0", "--verdict", "sent"]);
        exchange(&cluster, family);
        let of = |place: &str| match cluster.address(place, family) {
            IpAddr::V4(address) => format!("{address}:"),
            IpAddr::V6(address) => format!("[{address}]:"),
        };
        let (client, node, pod) = (of("client"), of("node1"), of("pod2a"));
        let (lines, _) = shown.end();
        for (side, from, to) in [
            ("in ", &client, &node_port.to_string()),
            ("out", &node, &pod),
            ("in ", &pod, &node),
            ("out", &node_port.to_string(), &client),
        ] {
            let is_so = |line: &str| {
                line.contains(&format!(" eth0 {side} sent    TCP {from}"))
                    && line.contains(&format!(" > {to}"))
            };
            assert!(lines.lines().any(is_so), "{side} {from} > {to}\n{told}{lines}");
        }
        let dumped = tcpdump(&file);
        let frames: usize =
            told.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0);
        assert!(frames > 20, "{told}");
        assert_eq!(dumped.lines().count(), frames, "{told}{dumped}");
        assert!(dumped.contains(": Flags [P"), "{dumped}");
    }
}

#[test]
fn both_sides_of_what_the_driver_carries() {
    shows("native");
}

#[test]
fn both_sides_of_what_the_kernel_carries() {
    shows("generic");
}

#[test]
fn filters_limits_and_ends() {
    let (mut cluster, _wired) = up("native");
    let family = FAMILIES[0];
    let port = Target::NodePort("node1", 11).address(&cluster.lab, family).port().to_string();
    // So many frames and no more, by themselves.
    let few = Capture::begin(&cluster, "few", &["--count", "6", "--port", &port]);
    exchange(&cluster, family);
    let (lines, told) = few.ended();
    assert_eq!(lines.lines().count(), 6, "{lines}");
    assert!(told.contains("6 frames captured of "), "{told}");
    let none = Capture::begin(&cluster, "none", &["--port", "1", "--duration", "3"]);
    exchange(&cluster, family);
    let (lines, told) = none.ended();
    assert!(lines.is_empty() && told.contains("\n0 frames captured of "), "{lines}{told}");
    // It goes on with the programs of the next agent.
    let through = Capture::begin(&cluster, "through", &["--verdict", "sent"]);
    ok(cluster.agents[0].restart());
    exchange(&cluster, family);
    let (lines, told) = through.end();
    assert!(lines.lines().count() > 20, "{lines}{told}");
    // What a killed one leaves, frames put away.
    let mut killed = Capture::begin(&cluster, "killed", &["--write", "/dev/null"]);
    ok(killed.process.kill());
    assert!(is_told(&cluster));
    eventually("the programs are at rest", || {
        exchange(&cluster, family);
        (!is_told(&cluster)).then_some(())
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    let (mut cluster, _wired) = up("generic");
    let refused = |cluster: &Cluster, arguments: &[&str], wanted: &str| {
        let output = ok(cluster.agents[0].ask(&[&["capture"], arguments].concat()));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains(wanted), "{wanted}: {told}");
    };
    refused(&cluster, &["-i", "eth7"], "no such device; XDP runs on: eth0 (generic)");
    refused(&cluster, &["-i", "lo"], "XDP does not run there");
    let first = Capture::begin(&cluster, "first", &[]);
    refused(&cluster, &[], "another capture is under way");
    first.end();
    refused(&cluster, &["-w", "/no/such/place"], "cannot write /no/such/place: No such file");
    let line = format!(
        "setpriv --reuid 65534 --clear-groups {} capture --bpffs {} 2>&1 || true",
        lab::dist().join("proxy-agent").display(),
        cluster.lab.bpffs("node1").display()
    );
    let told = ok(cluster.lab.shell("node1", &line));
    assert!(told.contains("ermission") && told.contains("run as root"), "{told}");
    // What an agent's container may is enough.
    let line = format!(
        "setpriv --bounding-set -all,+bpf,+perfmon {} capture --duration 1 --bpffs {} 2>&1",
        lab::dist().join("proxy-agent").display(),
        cluster.lab.bpffs("node1").display()
    );
    let told = ok(cluster.lab.shell("node1", &line));
    assert!(told.contains(" seen, 0 lost"), "{told}");
    cluster.agents[0].change_argument("--xdp=off");
    ok(cluster.agents[0].restart());
    eventually("XDP is off", || {
        (show(&cluster.agents[0], &["status"])["xdp"][0]["mode"] == "none").then_some(())
    });
    refused(&cluster, &[], "use tcpdump");
}
