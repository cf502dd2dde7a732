//! Known connections from outside past bridge and IP stack: into the pod, to another node, and back; and by
//! the stack as soon as anything on the node has a say.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
};

use agent_kit::{
    bpf::{self, Place, attach_type},
    counts::Counts,
    object, program,
};
use aya::Ebpf;
use datapath::forward::{FORWARDED_LEN, Way};
use lab::{
    agent::SocketLb,
    peer::{self, Exchange, Load},
};

use crate::{
    change::load_of_tcp,
    cluster::{Cluster, Plan, eventually, ok},
    service::{FAMILIES, Target, expose},
    wired::index,
};

const BYTES: u64 = 4 << 20;
const LOCAL: u8 = 10;
const REMOTE: u8 = 11;

fn up(extra: &[&str]) -> Cluster {
    let plan = Plan::new(SocketLb::On).extra(extra);
    plan.up(&[expose(LOCAL, &["pod1a"]), expose(REMOTE, &["pod2a"])])
}

/// Packets that passed the first node's stack by, by [`Way`].
fn forwarded(cluster: &Cluster) -> [u64; FORWARDED_LEN] {
    let counts = ok(Counts::open(&cluster.lab.bpffs("node1").join("proxy/maps"), "FORWARDED"));
    Way::ALL.map(|way| counts.sum(way as u32))
}

/// Packets that the first node's stack forwarded, of both families.
fn by_the_stack(cluster: &Cluster) -> u64 {
    let text = ok(cluster.lab.shell("node1", "nstat -asz IpForwDatagrams Ip6OutForwDatagrams"));
    let lines = text.lines().filter(|line| line.starts_with("Ip"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// A large transfer by each NodePort and family.
fn transfer(cluster: &Cluster) {
    for family in FAMILIES {
        for number in [LOCAL, REMOTE] {
            let to = Target::NodePort("node1", number).address(&cluster.lab, family);
            let outcome = ok(peer::exchange(&cluster.place("client"), to, BYTES));
            assert_eq!(outcome, Exchange::whole(BYTES), "{to}");
        }
    }
}

/// What passed the stack by and what did not, of a transfer.
fn counted(cluster: &Cluster) -> ([u64; FORWARDED_LEN], u64) {
    let before = (forwarded(cluster), by_the_stack(cluster));
    transfer(cluster);
    let after = forwarded(cluster);
    let passed = [0, 1, 2].map(|way| after[way] - before.0[way]);
    (passed, by_the_stack(cluster) - before.1)
}

fn assert_whole(load: &Load) {
    assert!(load.connections > 0 && load.requests > 0, "{load:?}");
    assert_eq!((load.failed, load.resets), (0, 0), "{load:?}");
}

fn says(cluster: &Cluster, words: &str) {
    eventually(words, || {
        let shown = cluster.show(&["status"]);
        shown["fast_path"].as_str().is_some_and(|said| said.contains(words)).then_some(())
    });
}

#[test]
fn known_connections_pass_the_stack_by() {
    let cluster = up(&[]);
    says(&cluster, "on, nothing on this node filters or translates");
    for _ in 0..2 {
        cluster.reaches("client", Target::NodePort("node1", LOCAL), &["pod1a"], "client");
        cluster.reaches("client", Target::NodePort("node1", REMOTE), &["pod2a"], "node1");
    }
    let (passed, stack) = counted(&cluster);
    // Segments come in bundles of up to 64 KiB; each way there are acknowledgements, too.
    assert!(passed.iter().all(|&count| count > BYTES >> 16), "{passed:?}");
    assert!(stack * 8 < passed.iter().sum(), "{stack} by the stack, {passed:?} past it");
    for (way, count) in Way::ALL.into_iter().zip(forwarded(&cluster)) {
        let told = cluster.metric("millrace_fast_path_packets_total", &[("to", way.name())]);
        assert_eq!(told.round() as i64, count.cast_signed(), "{}", way.name());
    }
}

#[test]
fn nothing_passes_it_by_where_that_is_off() {
    let cluster = up(&["--fast-path=off"]);
    says(&cluster, "off, as told");
    let (passed, stack) = counted(&cluster);
    assert_eq!(passed, [0; FORWARDED_LEN]);
    assert!(stack > BYTES >> 16, "{stack}");
}

/// Connections are under way while rules come and go, which have to see what is forwarded.
#[test]
fn rules_that_come_see_every_packet() {
    let cluster = up(&[]);
    let loads = [LOCAL, REMOTE].map(|number| {
        let flags = ["--rate=40", "--lasting=4", "--requests=20"];
        load_of_tcp(&cluster, "client", Target::NodePort("node1", number), flags)
    });
    transfer(&cluster);
    let add = "nft 'add table inet guard; add chain inet guard forward \\
               { type filter hook forward priority 0; policy accept; }; \\
               add rule inet guard forward counter'";
    ok(cluster.lab.shell("node1", add));
    says(&cluster, "off: ");
    let (passed, stack) = counted(&cluster);
    assert_eq!(passed, [0; FORWARDED_LEN]);
    assert!(stack > BYTES >> 16, "{stack}");
    ok(cluster.lab.shell("node1", "nft delete table inet guard"));
    says(&cluster, "on, ");
    let (passed, _) = counted(&cluster);
    assert!(passed.iter().all(|&count| count > 0), "{passed:?}");
    for load in loads {
        assert_whole(&ok(load.stop()));
    }
}

/// A limit to what a pod may receive would not be kept.
#[test]
fn a_pod_whose_packets_are_limited_gets_them_by_the_stack() {
    let cluster = up(&[]);
    transfer(&cluster);
    let limit = "tc qdisc add dev vethpod1a root tbf rate 4gbit burst 1mb latency 50ms";
    ok(cluster.lab.shell("node1", limit));
    let way = |way: Way| forwarded(&cluster)[way as usize];
    eventually("the limit is heeded", || {
        let before = (way(Way::Pod), way(Way::Client));
        transfer(&cluster);
        ((way(Way::Pod), way(Way::Client)) == before).then_some(())
    });
    // The other node's pods have none.
    let before = way(Way::Node);
    transfer(&cluster);
    assert!(way(Way::Node) > before);
}

/// Nobody looks for rules any more.
#[test]
fn an_agent_that_goes_leaves_packets_to_the_stack() {
    let mut cluster = up(&[]);
    let load = {
        let flags = ["--rate=40", "--lasting=3", "--requests=20"];
        load_of_tcp(&cluster, "client", Target::NodePort("node1", LOCAL), flags)
    };
    transfer(&cluster);
    ok(cluster.agents[0].end());
    let (passed, _) = counted(&cluster);
    assert_eq!(passed, [0; FORWARDED_LEN]);
    assert_whole(&ok(load.stop()));
}

/// Another pod has its address: what was learned of the one before is nobody's.
#[test]
fn what_was_learned_of_a_pod_is_not_another_ones() {
    let cluster = up(&[]);
    transfer(&cluster);
    ok(cluster.lab.shell("pod1a", "ip link set eth0 address 02:00:00:00:77:01"));
    ok(cluster.lab.shell("node1", "ip neigh flush all"));
    let ([pod, node, _], _) = counted(&cluster);
    assert!(pod == 0 && node > 0, "{pod}, {node}");
}

/// Programs and filters of others on a pod's device, such as those of a network policy, or on its bridge.
#[test]
fn what_others_have_on_a_pods_device_sees_its_packets() {
    let cluster = up(&[]);
    transfer(&cluster);
    let way = |way: Way| forwarded(&cluster)[way as usize];
    let heeded = |what: &str, is_heeded: bool| {
        eventually(what, || {
            let before = (way(Way::Pod), way(Way::Client));
            transfer(&cluster);
            let is_passed_by = way(Way::Pod) > before.0 && way(Way::Client) > before.1;
            let is_seen = (way(Way::Pod), way(Way::Client)) == before;
            (if is_heeded { is_seen } else { is_passed_by }).then_some(())
        });
    };
    for device in ["vethpod1a", "cni0"] {
        let add = format!(
            "tc qdisc add dev {device} clsact && \
             tc filter add dev {device} egress bpf bytecode '1,6 0 0 0' flowid 1:1"
        );
        ok(cluster.lab.shell("node1", &add));
        heeded("a filter", true);
        ok(cluster.lab.shell("node1", &format!("tc qdisc del dev {device} clsact")));
        heeded("no filter", false);
        let program = stranger(&cluster, device);
        heeded("a program", true);
        drop(program);
        heeded("no program", false);
    }
}

/// A program of somebody else's on what leaves by a device of the first node, for as long as this lives.
fn stranger(cluster: &Cluster, device: &str) -> (OwnedFd, Ebpf) {
    let bytes = ok(fs::read(lab::dist().with_file_name("bpf").join("proxy.o")));
    let mut programs = ok(object::load_private(&bytes));
    let program = programs.program_mut("flow_sweep").expect("the object has it");
    ok(program::load(program));
    let fd = ok(program.fd()).as_fd();
    let index = ok(index(&cluster.lab, "node1", device));
    let attach = || bpf::link_create_tcx(fd, index, attach_type::TCX_EGRESS, Place::First);
    let link = ok(ok(cluster.lab.enter("node1", attach)));
    (link, programs)
}
