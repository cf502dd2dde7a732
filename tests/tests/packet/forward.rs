//! The packet path's programs that send on what they have rewritten: what leaves is to the byte what the program
//! on the wire makes of the same frame, or what the kernel's forwarding would.

use std::net::IpAddr;

use agent_kit::table::{MapTable, Table};
use datapath::{
    address::{Mac, protocol},
    both,
    counter::Hook,
    device::{Device, way},
    flow::{Flow, FlowKey, Parties, flow_flags, seen},
    home::Home,
    host::{
        frame::Datagram,
        verify::{describe, difference},
    },
    settings::Settings,
};

use crate::{
    machine::{NEXT, REDIRECT, Rows, clear, write},
    object::{Row, test_run_at},
    twins::tick,
    uplinks::run,
    wire::{Family, Pair},
    wire_scene::{ETHERNET, Kind, MTU, ROUTER, UP, UP2, arriving, frame, reply, request},
};

const TCP: u8 = protocol::TCP;
const POD: Mac = Mac([2, 0, 0, 0, 1, 3]);

struct Bed<F: Family> {
    pair: Pair<F>,
    homes: Rows<F::Address, Home>,
    devices: Rows<u32, Device>,
    settings: Rows<u32, Settings>,
}

impl<F: Family> Bed<F> {
    /// The pod of the local flows is behind the second device, as its route says.
    fn new() -> Self {
        let pair = Pair::<F>::new();
        let of_family = |name: &str| pair.loaded().map(&format!("{name}{}", F::SUFFIX));
        let mut bed = Self {
            homes: MapTable::new(of_family("HOMES")).expect("sizes"),
            devices: MapTable::new(pair.loaded().map("DEVICES")).expect("sizes"),
            settings: MapTable::new(pair.loaded().map("SETTINGS")).expect("sizes"),
            pair,
        };
        clear(&mut bed.homes);
        clear(&mut bed.devices);
        let pod: IpAddr = Kind::Local.parties::<F>(TCP).backend.addr.into();
        run(&format!(
            "route replace {pod} dev up1\nneighbour replace {pod} lladdr {POD} dev up1 nud permanent\n"
        ));
        let [up, pods] = bed.ends();
        bed.lead(up, way::OUT);
        bed.lead(pods, way::POD);
        bed.switch(1);
        bed
    }

    /// The uplink, and the device of the pod.
    fn ends(&self) -> [u32; 2] {
        let devices = self.pair.scene.devices;
        [devices.up, devices.up2]
    }

    fn lead(&mut self, device: u32, way: u32) {
        write(&mut self.devices, device, Device { way, ..Device::default() });
    }

    fn switch(&mut self, fast_path: u16) {
        let row = Settings { fast_path, ipv6_checksum_flags: 0x10, ..Settings::default() };
        write(&mut self.settings, 0, row);
    }

    fn settle(&mut self, home: Home) {
        let pod = Kind::Local.parties::<F>(TCP).backend.addr;
        write(&mut self.homes, pod, home);
    }

    fn run(&self, hook: Hook, device: u32, bytes: &[u8]) -> (i32, Vec<u8>) {
        test_run_at(self.pair.loaded().program(hook), device, bytes)
    }

    #[track_caller]
    fn is_sent(&self, hook: Hook, device: u32, bytes: &[u8], expected: &[u8]) {
        let (returned, out) = self.run(hook, device, bytes);
        assert_eq!(returned, REDIRECT, "{}", describe::<F>(&bytes[ETHERNET..]));
        assert_eq!(out[..ETHERNET], expected[..ETHERNET]);
        if let Some(text) = difference::<F>(&expected[ETHERNET..], &out[ETHERNET..]) {
            panic!("{text}");
        }
    }

    /// What came by the uplink is rewritten, and left to the stack.
    #[track_caller]
    fn is_left(&self, packet: &Datagram<F>, what: &str) {
        let Parties { backend, .. } = Kind::Local.parties::<F>(packet.proto);
        let [up, _] = self.ends();
        let (returned, out) = self.run(Hook::UplinkIngress, up, &arriving::<F>(&packet.bytes()));
        assert_eq!(returned, NEXT, "{what}");
        let expected = arriving::<F>(&packet.clone().to(backend).bytes());
        assert!(out == expected, "{what}: {}", describe::<F>(&out[ETHERNET..]));
    }
}

both! {
    what_is_for_another_node_goes_out_as_on_the_wire,
    both_rows_of_what_leaves_at_once_hear_of_it,
    a_pods_answer_goes_out,
    what_is_for_a_pod_goes_into_it,
    what_the_stack_has_to_see_is_left_to_it,
    what_is_no_answer_is_left_to_the_stack,
}

fn what_is_for_another_node_goes_out_as_on_the_wire<F: Family>() {
    let mut bed = Bed::<F>::new();
    let [up, _] = bed.ends();
    for kind in [Kind::Routed, Kind::RoutedAlias] {
        for packet in [request::<F>(kind, TCP), reply::<F>(kind, TCP)] {
            let bytes = arriving::<F>(&packet.bytes());
            let (_, expected) = bed.pair.scene.run(&bytes);
            assert_ne!(expected, bytes);
            bed.is_sent(Hook::UplinkIngress, up, &bytes, &expected);
        }
    }
    // A tunnel is others' to enter.
    let packet = request::<F>(Kind::Tunnelled, TCP);
    assert_eq!(bed.run(Hook::UplinkIngress, up, &arriving::<F>(&packet.bytes())).0, NEXT);
}

/// Of a packet that no other hook sees, the row of that one is told: who asks whether a flow lives, or is over,
/// asks the rows of both directions as the packet path leaves them.
fn both_rows_of_what_leaves_at_once_hear_of_it<F: Family>() {
    let mut bed = Bed::<F>::new();
    let [up, _] = bed.ends();
    let flows: Rows<FlowKey<F::Address>, Flow<F::Address>> =
        MapTable::new(bed.pair.loaded().map(&format!("FLOWS{}", F::SUFFIX))).expect("sizes");
    for kind in [Kind::Routed, Kind::RoutedAlias] {
        let parties = kind.parties::<F>(TCP);
        let ways = [
            (request::<F>(kind, TCP), [parties.original(), parties.original_source()]),
            (reply::<F>(kind, TCP), [parties.reply_target(), parties.reply()]),
        ];
        for (packet, keys) in ways {
            for key in keys {
                bed.pair.change(&key, |row| (row.last, row.seen) = (tick() - 20, seen::PACKET));
            }
            let rows = || keys.map(|key| flows.get(&Row(key)).expect("a table").expect("a row").0);
            let before = rows()[0].packets;
            let is_sent = |flags: u8| {
                let bytes = arriving::<F>(&Datagram { flags, ..packet.clone() }.bytes());
                assert_eq!(bed.run(Hook::UplinkIngress, up, &bytes).0, REDIRECT);
            };
            is_sent(0x10);
            for row in rows() {
                assert_eq!(row.seen, seen::PACKET);
                assert!(tick().wrapping_sub(row.last) < 10);
            }
            is_sent(0x11);
            for row in rows() {
                assert_eq!(row.seen, seen::PACKET | seen::FIN);
            }
            assert_eq!(rows()[0].packets, before + 2);
        }
    }
}

/// The pod's packet, and what goes to the client's router.
fn answer<F: Family>() -> (Vec<u8>, Vec<u8>) {
    let Parties { client, frontend, backend, .. } = Kind::Local.parties::<F>(TCP);
    let packet = Datagram::<F>::of(TCP, backend, client, 0x18).with_payload(b"an answer");
    let mut goes = packet.clone().from(frontend);
    goes.hops -= 1;
    (frame::<F>(UP2, POD, &packet.bytes()), frame::<F>(ROUTER, UP, &goes.bytes()))
}

/// And tells where the pod is.
fn a_pods_answer_goes_out<F: Family>() {
    let bed = Bed::<F>::new();
    let [_, pods] = bed.ends();
    let (came, goes) = answer::<F>();
    bed.is_sent(Hook::PodIngress, pods, &came, &goes);
    let rows = bed.homes.rows().expect("rows");
    let [(_, home)] = &rows[..] else { panic!("{} rows", rows.len()) };
    assert_eq!((home.0.device, home.0.mac), (pods, POD));
    assert!(tick().wrapping_sub(home.0.last) < 10);
}

fn what_is_for_a_pod_goes_into_it<F: Family>() {
    let mut bed = Bed::<F>::new();
    let [up, pods] = bed.ends();
    bed.settle(Home { device: pods, last: tick(), mac: POD, pad: 0 });
    let packet = request::<F>(Kind::Local, TCP);
    let mut goes = packet.clone().to(Kind::Local.parties::<F>(TCP).backend);
    goes.hops -= 1;
    let (came, goes) = (arriving::<F>(&packet.bytes()), frame::<F>(POD, UP2, &goes.bytes()));
    bed.is_sent(Hook::UplinkIngress, up, &came, &goes);
}

fn what_the_stack_has_to_see_is_left_to_it<F: Family>() {
    let mut bed = Bed::<F>::new();
    let [_, pods] = bed.ends();
    let home = Home { device: pods, last: tick(), mac: POD, pad: 0 };
    let packet = request::<F>(Kind::Local, TCP);
    bed.is_left(&packet, "nobody knows where the pod is");
    for (what, row) in [
        ("two devices say it is theirs", Home { device: 0, ..home }),
        ("a pod that was silent for long", Home { last: tick() - 60, ..home }),
        ("another pod's", Home { mac: UP, ..home }),
    ] {
        bed.settle(row);
        bed.is_left(&packet, what);
    }
    bed.settle(home);
    let headers = F::HEADER as usize + 20;
    let with = |change: fn(&mut Datagram<F>)| {
        let mut packet = packet.clone();
        change(&mut packet);
        packet
    };
    for (what, packet) in [
        ("no hop left", with(|packet| packet.hops = 1)),
        ("a reset", with(|packet| packet.flags = 0x14)),
        ("a datagram", request::<F>(Kind::Local, protocol::UDP)),
        ("too long", packet.clone().with_payload(&vec![7; MTU as usize - headers + 1])),
    ] {
        bed.is_left(&packet, what);
    }
    bed.lead(pods, way::NONE);
    bed.is_left(&packet, "a pod whose packets are limited");
    bed.lead(pods, way::POD);
    bed.switch(0);
    bed.is_left(&packet, "off");
    bed.switch(1);
    let [up, _] = bed.ends();
    let (returned, _) = bed.run(Hook::UplinkIngress, up, &arriving::<F>(&packet.bytes()));
    assert_eq!(returned, REDIRECT);
}

fn what_is_no_answer_is_left_to_the_stack<F: Family>() {
    let mut bed = Bed::<F>::new();
    let [up, pods] = bed.ends();
    let (came, _) = answer::<F>();
    let is_left = |bed: &Bed<F>, what: &str| {
        let (returned, out) = bed.run(Hook::PodIngress, pods, &came);
        assert_eq!((returned, &out), (NEXT, &came), "{what}");
    };
    bed.lead(up, way::NONE);
    is_left(&bed, "by no uplink");
    bed.lead(up, way::OUT);
    bed.lead(pods, way::NONE);
    is_left(&bed, "of no pod that may");
    bed.lead(pods, way::POD);
    bed.switch(0);
    is_left(&bed, "off");
    bed.switch(1);
    // What the flow ends with is the row's own to say.
    let key = Kind::Local.parties::<F>(TCP).reply();
    bed.pair.change(&key, |row| row.flags |= flow_flags::RESET);
    is_left(&bed, "of an endpoint that is gone");
    bed.pair.change(&key, |row| row.flags &= !flow_flags::RESET);
    bed.pair.change(&key, |row| row.role = datapath::flow::role::ORIGINAL_SOURCE);
    is_left(&bed, "a row of another kind");
    assert!(bed.homes.rows().expect("rows").len() <= 1);
}
