//! The tables that programs fill under pressure: a flood of forged SYNs, rows whose time is over,
//! and no room at all, for flows and for sockets.

use agent_kit::table::{MapTable, Table};
use datapath::{
    address::{Be16, Ipv4, Ipv6, protocol},
    flow::{Flow, FlowKey, Parties, Place, TICK_NS, role, seen},
    socket::{Connected, Peer, PeerKey, side},
    tables::Opening,
};
use lab::{
    agent::SocketLb,
    peer::{self, Protocol, Question},
};

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    raw,
    service::{FAMILIES, Family, TARGET, Target, expose},
};

both! {
    spoofed_syn_flood_leaves_new_connections_working,
    table_full_of_expired_rows_leaves_new_connections_working,
    table_full_of_live_rows_refuses_and_counts,
}

fn spoofed_syn_flood_leaves_new_connections_working(mode: SocketLb) {
    const PACKETS: u32 = 100_000;
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a"]), expose(11, &["pod2a"])]);
    let client = cluster.place("client");
    // Long enough for the client to ask again: the flood also fills queues that are the kernel's
    // own (the backend's SYN queue, the node's neighbour table), and a SYN lost there is not ours.
    let timeout = Some(std::time::Duration::from_secs(20));
    let question = Question { count: Some(20), timeout, ..Question::default() };
    for family in FAMILIES {
        // One with a local backend, one that is masqueraded.
        let targets =
            [10, 11].map(|number| Target::NodePort("node1", number).address(&cluster.lab, family));
        let arguments = targets.map(|to| format!("--tcp={to}"));
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let udp = format!("--udp={}", targets[0]);
        arguments.extend([udp.as_str(), "--rate=20", "--requests=20", "--datagrams=20"]);
        arguments.push("--timeout=20");
        let established = ok(peer::load(&client, &arguments));
        eventually("the load is under way", || {
            let sockets = ok(cluster.lab.shell("client", "ss -Htn state established | wc -l"));
            (sockets.trim().parse::<u32>().ok()? >= 16).then_some(())
        });
        for to in targets {
            let sent = ok(client.enter(|| raw::syn_flood(to, PACKETS)));
            assert!(ok(sent) > PACKETS / 2, "the flood did not leave the client");
            for answer in cluster.ask_with("client", Protocol::Tcp, to, &question) {
                assert!(answer.answer.is_some(), "during the flood: {answer:?}");
            }
        }
        let load = ok(established.stop());
        assert!(load.connections > 0 && load.requests > 0, "{load:?}");
        assert_eq!((load.failed, load.resets), (0, 0), "{load:?}");
        // Datagrams lost in those queues are not sent again; one in twenty is more than that takes.
        assert!(load.udp_missing * 20 <= load.udp_sent, "{load:?}");
    }
    // The flood was seen: what it left stands in the table of unanswered flows.
    let status = cluster.show(&["status"]);
    let rows = |table: &str| {
        let tables = status["tables"].as_array().into_iter().flatten();
        tables.filter(|row| row["table"] == table).find_map(|row| row["entries"].as_u64())
    };
    assert!(rows("PENDING4") > Some(1_000) && rows("PENDING6") > Some(1_000), "{status}");
    assert!(rows("FLOWS4") < Some(5_000) && rows("FLOWS6") < Some(5_000), "{status}");
}

/// Rows that fit into the flow tables of these cases.
const ROOM: u32 = 4_096;

fn small(mode: SocketLb) -> Plan {
    let room = format!("flows={ROOM}");
    Plan::new(mode).extra(&["--capacity", &room])
}

/// The clock of the programs.
fn now() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live structure to be filled.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    (ns.cast_unsigned() / TICK_NS) as u32
}

/// Fills both flow tables of a node with answered TCP flows of strangers, last seen `idle`
/// ticks ago and closed if so; returns how many rows were there.
fn fill(cluster: &Cluster, node: &str, idle: u32, seen: u8) -> usize {
    let maps = cluster.lab.bpffs(node).join("proxy/maps");
    let last = now().saturating_sub(idle);
    let mut v4_table = ok(MapTable::open(&maps, "FLOWS4"));
    let mut v6_table = ok(MapTable::open(&maps, "FLOWS6"));
    fill_table(&mut v4_table, stranger4, last, seen)
        + fill_table(&mut v6_table, stranger6, last, seen)
}

/// Addresses that are for tests (RFC 2544, RFC 5180).
fn stranger4(number: u32) -> Ipv4 {
    Ipv4::from_bytes((0xc612_0000 | number).to_be_bytes())
}

fn stranger6(number: u32) -> Ipv6 {
    let mut bytes = [0x20, 0x01, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    Ipv6::from_bytes(bytes)
}

fn fill_table<A: datapath::address::Address>(
    table: &mut impl Table<FlowKey<A>, Flow<A>>,
    address: impl Fn(u32) -> A,
    last: u32,
    seen: u8,
) -> usize {
    let mut rows = 0;
    for number in 0..table.capacity() {
        let place = |number, port| Place::new(address(number), Be16::new(port));
        let parties = Parties {
            client: place(number, 40_000),
            frontend: place(0xffff, 80),
            backend: place(0xfffe, 8080),
            proto: protocol::TCP,
            ..Parties::default()
        };
        for role in [role::ORIGINAL, role::REPLY] {
            let opening = Opening { role, service: 0, flags: 0, now: last, replace: false };
            let row = Flow { seen, ..parties.row(opening) };
            match table.insert(&parties.key(role), &row) {
                Ok(()) => rows += 1,
                Err(_) => return rows,
            }
        }
    }
    rows
}

/// Ways that meet the flow tables of node1 whatever the socket path does.
const WAYS: [(&str, Target); 3] = [
    ("client", Target::NodePort("node1", 10)),
    ("client", Target::NodePort("node1", 11)),
    ("client", Target::ClusterIp(10)),
];

fn table_full_of_expired_rows_leaves_new_connections_working(mode: SocketLb) {
    let services = [expose(10, &["pod1a"]), expose(11, &["pod2a"])];
    let mut cluster = small(mode).up(&services);
    ok(cluster.agents[0].kill());
    // Closed on both sides, ten minutes ago.
    let over = seen::PACKET | seen::FIN;
    let rows = fill(&cluster, "node1", 600, over);
    assert!(rows > 2 * (ROOM as usize) - 256, "only {rows} rows");
    for (from, target) in WAYS {
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            let question = Question { count: Some(20), ..Question::default() };
            // A datagram that is lost in a queue of the kernel's own, which cases share, is not
            // sent again.
            for (protocol, may_be_lost) in [(Protocol::Tcp, 0), (Protocol::Udp, 1)] {
                let mut answers = cluster.ask_with(from, protocol, to, &question);
                answers.retain(|answer| answer.answer.is_none());
                assert!(answers.len() <= may_be_lost, "with no agent: {answers:?}");
            }
        }
    }
}

fn table_full_of_live_rows_refuses_and_counts(mode: SocketLb) {
    let services = [expose(10, &["pod1a"]), expose(11, &["pod2a"])];
    let cluster = small(mode).up(&services);
    let client = cluster.place("client");
    let to = Target::NodePort("node1", 10).address(&cluster.lab, Family::V4);
    let arguments = [format!("--tcp={to}"), "--rate=1".into(), "--lasting=4".into()];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let established = ok(peer::load(&client, &arguments));
    eventually("the load is under way", || {
        let sockets = ok(cluster.lab.shell("client", "ss -Htn state established | wc -l"));
        (sockets.trim().parse::<u32>().ok()? >= 4).then_some(())
    });
    fill(&cluster, "node1", 0, seen::PACKET);
    for family in FAMILIES {
        let to = Target::NodePort("node1", 11).address(&cluster.lab, family);
        let question = Question {
            timeout: Some(std::time::Duration::from_millis(700)),
            ..Question::default()
        };
        let answer = cluster.ask_with("client", Protocol::Udp, to, &question).remove(0);
        assert!(answer.answer.is_none(), "there was no room for it: {answer:?}");
    }
    let refused = cluster.metric("millrace_drops_total", &[("reason", "flow_table_full")]);
    assert!(refused >= 2.0, "{refused} refusals counted");
    let status = cluster.show(&["status"]);
    for table in ["FLOWS4", "FLOWS6"] {
        let mut tables = status["tables"].as_array().into_iter().flatten();
        let row = tables.rfind(|row| row["table"] == table);
        let (entries, capacity) = row
            .and_then(|row| Some((row["entries"].as_u64()?, row["capacity"].as_u64()?)))
            .unwrap_or_else(|| panic!("{table} is not shown: {status}"));
        assert!(entries + 256 > capacity, "{table}: {entries} of {capacity}");
    }
    // What was there before has its room; only new connections of the load may have failed.
    let load = ok(established.stop());
    assert!(load.requests > 0 && load.resets == 0, "{load:?}");
}

/// Gives all rows to one socket. (A socket's places are computed from the size of the table, so
/// `--capacity` cannot make it small.)
fn occupy<A: Copy + Default>(table: &mut impl Table<u32, Connected<A>>, cookie: u64) {
    let keys: Vec<u32> = (0..table.capacity()).collect();
    let rows = vec![Connected { cookie, ..Connected::default() }; keys.len()];
    ok(table.insert_all(&keys, &rows).1);
}

fn occupy_all(cluster: &Cluster, cookie: u64) {
    let maps = cluster.lab.bpffs("node1").join("proxy/maps");
    occupy::<Ipv4>(&mut ok(MapTable::open(&maps, "SOCKETS4")), cookie);
    occupy::<Ipv6>(&mut ok(MapTable::open(&maps, "SOCKETS6")), cookie);
}

#[test]
fn sockets_without_room_are_served_all_the_same() {
    /// The kernel counts up from one.
    const NOBODY: u64 = u64::MAX;
    let cluster = Plan::single(SocketLb::On).up(&[expose(10, &["pod1b"])]);
    occupy_all(&cluster, NOBODY);
    let before = cluster.connections(10);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    // TCP and UDP of two families.
    assert_eq!(cluster.connections(10), [before[0], before[1] + 4]);
    // No packet path serves the node's own processes: they see the backend.
    for family in FAMILIES {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        let answer = cluster.ask("node1", Protocol::Tcp, to);
        assert_eq!(answer.name(), Some("pod1b"), "{answer:?}");
        let backend = (cluster.address("pod1b", family), TARGET);
        assert_eq!(answer.peer.map(|peer| (peer.ip(), peer.port())), Some(backend));
    }
    let status = cluster.show(&["status"]);
    for name in ["SOCKETS4", "SOCKETS6"] {
        let mut tables = status["tables"].as_array().into_iter().flatten();
        let table = tables.find(|table| table["table"] == name).expect("it is shown");
        assert_eq!(table["entries"], table["capacity"], "{table}");
    }
    // With room again it is as before: UDP, by sockets with a peer, is always the packet path's.
    occupy_all(&cluster, 0);
    let before = cluster.connections(10);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    assert_eq!(cluster.connections(10), [before[0] + 2, before[1] + 2]);
}

/// Fills a table of peers with those of a socket that there is not.
fn crowd<A: Copy>(table: &mut impl Table<PeerKey<A>, Peer<A>>, address: impl Fn(u32) -> A) {
    for number in 0..table.capacity() {
        let place = Place::new(address(number), Be16::new(1));
        let peer = Peer { addr: place.addr, port: place.port, generation: 0, service: 0 };
        ok(table.insert(&PeerKey::new(u64::MAX, place, side::BACKEND), &peer));
    }
}

#[test]
fn peers_make_room_for_new_ones() {
    let cluster = Plan::single(SocketLb::On).up(&[expose(10, &["pod1b"])]);
    let maps = cluster.lab.bpffs("node1").join("proxy/maps");
    crowd(&mut ok(MapTable::open(&maps, "PEERS4")), stranger4);
    crowd(&mut ok(MapTable::open(&maps, "PEERS6")), stranger6);
    let question = Question { unconnected: true, count: Some(20), ..Question::default() };
    for from in ["pod1a", "node1"] {
        for family in FAMILIES {
            let to = Target::ClusterIp(10).address(&cluster.lab, family);
            for answer in cluster.ask_with(from, Protocol::Udp, to, &question) {
                assert_eq!(answer.from, Some(to), "{from}: {answer:?}");
            }
        }
    }
}
