//! A node whose proxy answers clients outside by itself: its lease tells the others, and their
//! programs are told.

use std::net::IpAddr;

use agent_kit::{
    Pod,
    table::{MapTable, Table},
};
use datapath::{
    address::{Ipv4, Ipv6},
    settings::Settings,
    tunnel::{NetworkKey, Vtep},
};

use crate::{
    bed::{Bed, DUAL, KERNEL, PREFIX, eventually, ok},
    word::Word,
};

const DSR: &str = r#""DSR":true"#;

/// What the store has of the second node.
fn lease(bed: &Bed) -> String {
    let keys = ok(bed.store.keys(&format!("{PREFIX}/subnets/10.244.2.0-24")));
    assert_eq!(keys.len(), 1, "{keys:?}");
    ok(bed.store.get(&keys[0])).unwrap_or_default()
}

fn rows<A>(bed: &Bed, table: &str) -> Vec<(NetworkKey<A>, Vtep<A>)>
where
    A: Into<IpAddr>,
    NetworkKey<A>: Pod,
    Vtep<A>: Pod,
{
    let maps = bed.lab.bpffs("node1").join("overlay/maps");
    let table: MapTable<NetworkKey<A>, Vtep<A>> = ok(MapTable::open(&maps, table));
    ok(table.rows())
}

/// What the first node's programs are told of the second, by family.
fn told(bed: &Bed) -> Vec<u8> {
    let rows4 = rows::<Ipv4>(bed, "VTEPS4").into_iter().map(|(_, vtep)| vtep.answers);
    let rows6 = rows::<Ipv6>(bed, "VTEPS6").into_iter().map(|(_, vtep)| vtep.answers);
    rows4.chain(rows6).collect()
}

/// Waits until the second node's lease and the first node's programs say so, or do not, and looks
/// at what both agents show.
fn wait_told(bed: &Bed, answers: bool) {
    let what = format!("answers {answers}: {}\n{}", lease(bed), bed.logs());
    eventually(&what, || {
        let said = lease(bed).matches(DSR).count();
        (said == if answers { 2 } else { 0 }).then_some(())
    });
    eventually(&what, || (told(bed) == [u8::from(answers); 2]).then_some(()));
    eventually("the agents show it", || {
        let peers = bed.show(0, "peers");
        let mut peers = peers.as_array().into_iter().flatten();
        let is_shown = peers.all(|peer| peer["answers"] == answers)
            && bed.show(1, "status")["answers"] == answers;
        is_shown.then_some(())
    });
    let shown = String::from_utf8_lossy(&ok(bed.agents[0].ask(&["peers"])).stdout).into_owned();
    assert_eq!(shown.contains("itself"), answers, "{shown}");
    assert_eq!(bed.show(0, "status")["answers"], false, "the other node says nothing");
}

#[test]
fn a_lease_says_who_answers_clients_and_rows_follow() {
    let mut bed = Bed::up(DUAL, &[]);
    let flannels = lease(&bed);
    assert!(!flannels.contains("DSR"), "{flannels}");
    let proxy = Word::new(&bed, "node2");
    proxy.come();
    wait_told(&bed, true);
    bed.assert_joined();
    // What another hand writes into a row is repaired.
    let maps = bed.lab.bpffs("node1").join("overlay/maps");
    let (key, row) = rows::<Ipv4>(&bed, "VTEPS4")[0];
    let mut table = ok(MapTable::open(&maps, "VTEPS4"));
    ok(table.insert(&key, &Vtep { answers: 0, ..row }));
    eventually("the row is repaired", || (told(&bed) == [1, 1]).then_some(()));
    // The proxy takes it back, and flannel's own lease is left.
    proxy.say(0);
    wait_told(&bed, false);
    assert_eq!(lease(&bed), flannels);
    proxy.say(1);
    wait_told(&bed, true);
    // An agent that starts again holds its lease and goes on saying so.
    ok(bed.agents[1].restart());
    wait_told(&bed, true);
    assert_eq!(lease(&bed).replace(r#""DSR":true,"#, ""), flannels, "the same device");
    // The table of a proxy of another make says nothing, nor does one that is gone.
    proxy.go();
    proxy.pin(size_of::<Settings>() - 4);
    wait_told(&bed, false);
    proxy.go();
    proxy.come();
    wait_told(&bed, true);
    // It changes while no agent runs.
    ok(bed.agents[1].kill());
    proxy.go();
    ok(bed.agents[1].restart());
    wait_told(&bed, false);
    assert_eq!(lease(&bed), flannels);
    bed.assert_joined();
}

/// Where devices take what comes out of tunnels, the proxy's programs cannot.
#[test]
fn a_node_without_programs_says_nothing_of_clients() {
    let mut bed = Bed::furnished(DUAL, &[KERNEL]);
    Word::new(&bed, "node2").come();
    bed.launch();
    bed.assert_joined();
    assert!(!lease(&bed).contains("DSR"), "{}", lease(&bed));
}
