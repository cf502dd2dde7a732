//! The flow tables under pressure: a flood of forged SYNs, rows whose time is over, and no room
//! at all.

use agent_kit::table::{MapTable, Table};
use datapath::{
    address::{Be16, Ipv4, Ipv6, protocol},
    flow::{Flow, FlowKey, Parties, Place, TICK_NS, role, seen},
    tables::Opening,
};
use lab::{
    agent::SocketLb,
    peer::{self, Protocol, Question},
};

use crate::{
    change::assert_nothing_lost,
    cluster::{Cluster, Plan, eventually, ok},
    raw,
    service::{FAMILIES, Family, Target, expose},
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
        assert_nothing_lost(&ok(established.stop()));
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
    let v4 = |place: u32| Ipv4::from_bytes((0xc612_0000 | place).to_be_bytes());
    let v6 = |place: u32| {
        let mut bytes = [0x20, 0x01, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[12..].copy_from_slice(&place.to_be_bytes());
        Ipv6::from_bytes(bytes)
    };
    let mut v4_table = ok(MapTable::open(&maps, "FLOWS4"));
    let mut v6_table = ok(MapTable::open(&maps, "FLOWS6"));
    fill_table(&mut v4_table, v4, last, seen) + fill_table(&mut v6_table, v6, last, seen)
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
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for answer in cluster.ask_with(from, protocol, to, &question) {
                    assert!(answer.answer.is_some(), "with no agent: {answer:?}");
                }
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
