//! Floods of new flows from outside: what was begun goes on, others begin theirs, and the agent does
//! its work.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{
    agent::SocketLb,
    peer::{self, Loading, Protocol, Question},
};

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    raw,
    service::{FAMILIES, Target, expose},
    wired::Wired,
};

/// Flows a second that a source may begin; twice as many at once.
const RATE: u32 = 60;

fn limited(more: &[&str]) -> Cluster {
    let rate = format!("--new-flows-per-source={RATE}");
    let plan = Plan::single(SocketLb::On).extra(&[&rate]).extra(more);
    plan.up(&[expose(10, &["pod1a"]), expose(11, &["pod1b"])])
}

/// Where the first Service answers, in both families.
fn targets(cluster: &Cluster) -> [SocketAddr; 2] {
    FAMILIES.map(|family| Target::NodePort("node1", 10).address(&cluster.lab, family))
}

/// A load of the client's, within what a source may begin; once it is under way.
fn established(cluster: &Cluster) -> Loading {
    let arguments = peer::targets(targets(cluster));
    let gentle = ["--rate=10", "--lasting=4", "--requests=50", "--datagrams=50", "--timeout=20"];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(gentle).collect();
    let load = ok(peer::load(&cluster.place("client"), &arguments));
    eventually("the load is under way", || {
        let sockets = ok(cluster.lab.shell("client", "ss -Htn state established | wc -l"));
        (sockets.trim().parse::<u32>().ok()? >= 8).then_some(())
    });
    load
}

/// No request failed. Queues of the kernel's take no more than they have room for: what is lost there
/// TCP sends again, and a datagram nobody.
#[track_caller]
fn assert_unharmed(load: Loading) {
    let load = ok(load.stop());
    assert!(load.connections > 10 && load.requests > 100 && load.udp_sent > 50, "{load:?}");
    assert_eq!((load.failed, load.resets), (0, 0), "{load:?}");
    assert!(load.udp_missing * 20 <= load.udp_sent, "{load:?}");
}

fn refused(cluster: &Cluster, hook: &str) -> u64 {
    let labels = [("reason", "source_rate"), ("hook", hook)];
    ok(cluster.metric("millrace_drops_total", &labels).to_string().parse())
}

fn rows(cluster: &Cluster, table: &str) -> u64 {
    let status = cluster.show(&["status"]);
    let tables = status["tables"].as_array().into_iter().flatten();
    let rows = tables.filter(|row| row["table"] == table).find_map(|row| row["entries"].as_u64());
    rows.unwrap_or_else(|| panic!("no table {table}: {status}"))
}

/// What one source sends is refused by `hook`, but for the flows that it may begin, while another's
/// requests do not notice; counters and `status` tell.
fn is_refused(cluster: &Cluster, hook: &str) {
    const PACKETS: u32 = 30_000;
    let load = established(cluster);
    let began = Instant::now();
    for to in targets(cluster) {
        let sent = ok(ok(cluster.place("client").enter(|| raw::syn_flood_of_one(to, PACKETS))));
        assert!(sent > PACKETS / 2, "the flood did not leave the client");
    }
    let seconds = began.elapsed().as_secs() + 1;
    let most = 2 * u64::from(RATE) * (2 + seconds);
    let enough = u64::from(PACKETS);
    let count = refused(cluster, hook);
    assert!(count > enough, "{count} were refused, and that in {seconds} s");
    let status = cluster.show(&["status"]);
    assert_eq!(status["new_flows"]["per_source"], RATE, "{status}");
    assert!(status["new_flows"]["refused"].as_u64() >= Some(enough), "{status}");
    let text = String::from_utf8_lossy(&ok(cluster.agents[0].ask(&["status"])).stdout).into_owned();
    assert!(text.contains(&format!("{RATE} a second from each source outside")), "{text}");
    // A flow has two rows, and the client's own are few.
    for table in ["PENDING4", "PENDING6"] {
        let rows = rows(cluster, table);
        assert!(rows <= 2 * most + 200, "{rows} rows in {table} after {seconds} s");
    }
    assert_unharmed(load);
}

#[test]
fn one_source_is_refused_and_another_goes_on() {
    let cluster = limited(&[]);
    is_refused(&cluster, "uplink_ingress");
    assert_eq!(refused(&cluster, "pod_ingress"), 0);
    // Whatever it is that a pod begins.
    let to = Target::ClusterIp(11).address(&cluster.lab, FAMILIES[0]);
    let question = Question { count: Some(4 * RATE), ..Question::default() };
    for answer in cluster.ask_with("pod1a", Protocol::Udp, to, &question) {
        assert!(answer.answer.is_some(), "{answer:?}");
    }
}

#[test]
fn one_source_is_refused_before_there_is_a_socket_buffer() {
    let cluster = limited(&["--xdp=native"]);
    let _wired = ok(Wired::up(&cluster.lab));
    is_refused(&cluster, "xdp_ingress");
    // What both programs saw was dropped by the first.
    let path = refused(&cluster, "uplink_ingress");
    assert!(path * 10 < refused(&cluster, "xdp_ingress"), "{path} were refused by the second");
}

/// A source may begin all that it may, by whichever programs its frames go.
#[test]
fn no_packet_is_charged_twice() {
    for more in [&[][..], &["--xdp=native"], &["--xdp=generic"]] {
        let cluster = limited(more);
        let _wired = ok(Wired::up(&cluster.lab));
        let question = Question { count: Some(2 * RATE), ..Question::default() };
        for to in targets(&cluster) {
            for answer in cluster.ask_with("client", Protocol::Tcp, to, &question) {
                assert!(answer.answer.is_some(), "{more:?}: {answer:?}");
            }
        }
        for hook in ["uplink_ingress", "xdp_ingress"] {
            assert_eq!(refused(&cluster, hook), 0, "{more:?}");
        }
    }
}

/// Without the option: tables that have room for part of it, and datagrams that are answered, so that
/// their flows are no more to be evicted than others.
#[test]
fn from_many_sources_takes_no_established_flow_and_no_time_of_the_agents() {
    const PACKETS: u32 = 40_000;
    const ROOM: u32 = 8_192;
    /// As much as the agent may grow, in bytes: tables are the kernel's.
    const GROWTH: f64 = 16e6;
    let room = format!("--capacity=flows={ROOM}");
    let plan = Plan::single(SocketLb::On).extra(&[&room]);
    let cluster = plan.up(&[expose(10, &["pod1a"]), expose(11, &["pod1a"])]);
    let memory = || cluster.metric("process_resident_memory_bytes", &[]);
    let arguments = peer::targets(targets(&cluster));
    // No new connections: while the table is full, these wait, or are refused.
    let gentle = ["--rate=0", "--lasting=8", "--requests=50", "--timeout=20"];
    let tcp = arguments.iter().map(String::as_str).filter(|to| to.starts_with("--tcp"));
    let load = ok(peer::load(&cluster.place("client"), &tcp.chain(gentle).collect::<Vec<_>>()));
    eventually("the load is under way", || {
        let sockets = ok(cluster.lab.shell("client", "ss -Htn state established | wc -l"));
        (sockets.trim().parse::<u32>().ok()? >= 16).then_some(())
    });
    let before = memory();
    let client = cluster.place("client");
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for to in targets(&cluster) {
                let sent = ok(ok(client.enter(|| raw::datagram_flood(to, PACKETS))));
                assert!(sent > PACKETS / 2, "the flood did not leave the client");
            }
        });
        let mut changes = 0;
        while !flood.is_finished() || changes < 4 {
            let pods: &[&str] = if changes % 2 == 0 { &["pod1b"] } else { &["pod1a", "pod1b"] };
            let began = Instant::now();
            cluster.publish(&expose(11, pods));
            assert!(
                began.elapsed() < Duration::from_secs(3),
                "a change took {:?}",
                began.elapsed()
            );
            changes += 1;
        }
    });
    let growth = memory() - before;
    assert!(growth < GROWTH, "the agent grew by {growth} bytes");
    let full: u64 = ["FLOWS4", "PENDING4"].iter().map(|table| rows(&cluster, table)).sum();
    assert!(full > u64::from(ROOM), "the flood was not seen: {full} rows");
    let load = ok(load.stop());
    assert!(load.requests > 100, "{load:?}");
    assert_eq!((load.failed, load.resets), (0, 0), "{load:?}");
}
