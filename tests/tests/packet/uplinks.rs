//! A network namespace with devices, routes and neighbours, of which programs on the wire ask the
//! kernel.

use std::{
    fs::{File, write},
    io::Write,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::wire_scene::{Devices, NODE, ROUTER, ROUTER2, UP, UP2};

/// Two uplinks, a router on each, and the other node; and ways of each kind to networks, which are
/// `10.N/16` and `fd00::N:0/112`: those of [`crate::wire_scene::at`], and besides
///
/// | N | way |
/// |---|---|
/// | 20 | by a router that no neighbour's address is known of |
/// | 21 | by a device that is no uplink |
/// | 22 | by the router, in packets of 1,300 bytes |
/// | 23 | unreachable |
/// | 24 | none |
/// | 25 | of the other node, whose address 26:1 is behind the router, in packets of 1,400 bytes |
///
/// Of a route's own MTU `bpf_fib_lookup` tells only if it is locked.
const NET: &str = "
link set lo up
link add up0 type veth peer name far-up0
link add up1 type veth peer name far-up1
link add side0 type veth peer name far-side0
link set far-up0 up
link set far-up1 up
link set far-side0 up
link set up0 address {UP} mtu 1500 up
link set up1 address {UP2} mtu 1500 up
link set side0 address 02:00:00:00:04:01 up
address add 10.9.0.1/24 dev up0
address add fd00::9:1/112 dev up0 nodad
address add 10.6.0.1/24 dev up1
address add fd00::6:1/112 dev up1 nodad
address add 10.5.0.1/24 dev side0
address add fd00::5:1/112 dev side0 nodad
neighbour add 10.9.0.2 lladdr {NODE} dev up0 nud permanent
neighbour add fd00::9:2 lladdr {NODE} dev up0 nud permanent
neighbour add 10.9.0.254 lladdr {ROUTER} dev up0 nud permanent
neighbour add fd00::9:fe lladdr {ROUTER} dev up0 nud permanent
neighbour add 10.6.0.254 lladdr {ROUTER2} dev up1 nud permanent
neighbour add fd00::6:fe lladdr {ROUTER2} dev up1 nud permanent
neighbour add 10.5.0.254 lladdr 02:00:00:00:04:fe dev side0 nud permanent
neighbour add fd00::5:fe lladdr 02:00:00:00:04:fe dev side0 nud permanent
route add 10.8.0.0/16 via 10.9.0.254
route add fd00::8:0/112 via fd00::9:fe
route add 10.3.0.0/16 via 10.9.0.254
route add fd00::3:0/112 via fd00::9:fe
route add 10.7.0.0/16 via 10.6.0.254
route add fd00::7:0/112 via fd00::6:fe
route add 10.20.0.0/16 via 10.9.0.99
route add fd00::14:0/112 via fd00::9:99
route add 10.21.0.0/16 via 10.5.0.254
route add fd00::15:0/112 via fd00::5:fe
route add 10.22.0.0/16 via 10.9.0.254 mtu lock 1300
route add fd00::16:0/112 via fd00::9:fe mtu lock 1300
route add unreachable 10.23.0.0/16
route add unreachable fd00::17:0/112
route add 10.26.0.0/16 via 10.9.0.254 mtu lock 1400
route add fd00::1a:0/112 via fd00::9:fe mtu lock 1400
";

/// The namespace of the calling thread, for as long as this is there.
pub(crate) struct Uplinks {
    before: File,
    pub(crate) devices: Devices,
}

impl Uplinks {
    pub(crate) fn new() -> Self {
        let before = File::open("/proc/thread-self/ns/net").expect("a namespace");
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            write(format!("/proc/sys/net/{name}"), value).expect("a setting");
        }
        let names = [
            ("{UP}", UP),
            ("{UP2}", UP2),
            ("{NODE}", NODE),
            ("{ROUTER}", ROUTER),
            ("{ROUTER2}", ROUTER2),
        ];
        let lines = names
            .iter()
            .fold(NET.to_owned(), |lines, (name, mac)| lines.replace(name, &mac.to_string()));
        run(&lines);
        let index = |name| nix::net::if_::if_nametoindex(name).expect("a device");
        Self { before, devices: Devices { up: index("up0"), up2: index("up1") } }
    }
}

/// Lines of `ip`, which belongs to the thread's namespace like the thread.
pub(crate) fn run(lines: &str) {
    let mut ip =
        Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
    ip.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("a reader");
    assert!(ip.wait().expect("an end").success());
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        setns(&self.before, CloneFlags::CLONE_NEWNET).expect("the namespace of before");
    }
}
