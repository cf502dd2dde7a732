//! What a node has and says once it is joined, next to what a real flanneld left on one
//! (`ip -d link`, `bridge fdb`, `subnet.env`, keys), and what the wire carries.

use std::{fs, process::Command, thread::sleep, time::Duration};

use lab::{NodeSpec, peer};

use crate::bed::{Bed, DUAL, KERNEL, PREFIX, SINGLE, eventually, ok, source_ports};

#[test]
fn pods_reach_each_other_by_both_families() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    for family in 0..2 {
        let to = ok(bed.lab.addresses("pod2a")).both()[family];
        let bytes = 4 << 20;
        let exchange = ok(peer::exchange(&ok(bed.lab.place("pod1a")), (to, 80).into(), bytes));
        assert_eq!(exchange, peer::Exchange::whole(bytes), "{to}");
    }
    // A node's own packets to a pod elsewhere carry the tunnel's address, which finds back.
    bed.shell("node1", "ping -c1 -W2 10.244.2.10 && ping -c1 -W2 fd00:10:244:2::10");
}

#[test]
fn a_node_looks_as_flanneld_leaves_it() {
    let bed = Bed::up(SINGLE, &[KERNEL]);
    bed.assert_joined_v4();
    let mac = |node: &str| {
        let text = bed.shell(node, "ip -o link show flannel.1");
        text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    };
    let (own, other) = (mac("node1"), mac("node2"));
    let link = bed.shell("node1", "ip -d link show flannel.1");
    for part in [
        "flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN",
        "vxlan id 1 local 192.168.78.11 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto \
         ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx",
    ] {
        assert!(link.contains(part), "{part}\n{link}");
    }
    assert_eq!(
        bed.shell("node1", "ip -4 -o addr show flannel.1 | awk '{print $4, $5, $6}'").trim(),
        "10.244.1.0/32 scope global"
    );
    assert_eq!(
        bed.shell("node1", "ip route show 10.244.2.0/24").trim(),
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
    );
    assert_eq!(
        bed.shell("node1", "ip -d route show dev flannel.1").trim(),
        "unicast 10.244.2.0/24 via 10.244.2.0 proto boot scope global onlink"
    );
    assert_eq!(
        bed.shell("node1", "bridge fdb show dev flannel.1").trim(),
        format!("{other} dst 192.168.78.12 self permanent")
    );
    assert_eq!(
        bed.shell("node1", "ip -4 neigh show dev flannel.1").trim(),
        format!("10.244.2.0 lladdr {other} PERMANENT")
    );
    assert_eq!(
        fs::read_to_string(bed.lab.subnet_file("node1")).unwrap(),
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=false\n"
    );
    let value = ok(bed.store.get(&format!("{PREFIX}/subnets/10.244.1.0-24")));
    assert_eq!(
        value.unwrap(),
        format!(
            r#"{{"PublicIP":"192.168.78.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{own}"}}}}"#
        )
    );
}

#[test]
fn dual_stack_has_a_device_for_each_family() {
    let bed = Bed::up(DUAL, &[KERNEL]);
    let link = bed.shell("node1", "ip -d link show flannel-v6.1");
    assert!(link.contains("mtu 1430") && link.contains("local fd00:78::11 dev eth0"), "{link}");
    let route = bed.shell("node1", "ip -6 route show fd00:10:244:2::/64");
    assert!(
        route.contains("via fd00:10:244:2:: dev flannel-v6.1") && route.contains("onlink"),
        "{route}"
    );
    let keys = ok(bed.store.keys(&format!("{PREFIX}/subnets/")));
    assert_eq!(keys[0], format!("{PREFIX}/subnets/10.244.1.0-24&fd00:10:244:1::-64"));
    assert_eq!(
        fs::read_to_string(bed.lab.subnet_file("node2")).unwrap(),
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\n\
         FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:2::1/64\n\
         FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    );
}

#[test]
fn the_wire_carries_vxlan_with_the_peers_mac_inside() {
    let bed = Bed::up(SINGLE, &[]);
    let device = bed.show(1, "status")["devices"][0]["mac"].as_str().unwrap().to_owned();
    let mut capture = Command::new("tcpdump");
    capture.args(["-i", "ul0", "-c", "1", "-nn", "-e", "-v"]);
    // A program made it: it has no checksum, and its source port is one of RFC 7348's.
    capture.arg("udp dst port 8472 and udp[6:2] = 0");
    capture.args(["-l"]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let capture = ok(bed.lab.spawn("fabric", capture));
    sleep(Duration::from_millis(700));
    bed.shell("pod1a", "ping -c2 -i0.3 -W2 10.244.2.10");
    let output = ok(capture.output());
    let text = String::from_utf8_lossy(&output.stdout);
    // tcpdump takes the port for OTV's, which has the same header: the flag "I" and a number.
    let header = "192.168.78.12.8472: OTV, flags [I] (0x08), overlay 0, instance 1";
    for part in ["192.168.78.11.", header, "ttl 64", &device] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let port = text.split("192.168.78.11.").nth(1).and_then(|rest| rest.split(' ').next());
    let port: Option<u16> = port.and_then(|port| port.parse().ok());
    assert!(port.is_some_and(|port| port >= 49_152), "{text}");
    assert!(!text.contains("bad udp cksum") && !text.contains("flags [DF], proto UDP"), "{text}");
}

/// By programs, and by the tunnel's device: where the kernel chooses tunnels, and where the device is to do
/// what programs else do.
#[test]
fn tunnels_come_from_the_ports_that_are_asked_for() {
    const PORTS: &str = "--vxlan-source-ports=5000-5003";
    for (arguments, has_device) in
        [(&[PORTS][..], false), (&[PORTS, "--fast-path=off"], true), (&[PORTS, KERNEL], true)]
    {
        let bed = Bed::up(DUAL, arguments);
        let device = bed.shell("node1", "ip -d link show flannel.1");
        assert!(device.contains("srcport 5000 5003"), "{device}");
        let ports = source_ports(&bed, 160, || {
            for to in ok(bed.lab.addresses("pod2a")).both() {
                let place = ok(bed.lab.place("pod1a"));
                for _ in 0..20 {
                    let exchange = ok(peer::exchange(&place, (to, 80).into(), 1));
                    assert_eq!(exchange, peer::Exchange::whole(1), "{to}");
                }
            }
        });
        let own = 5000..=5003;
        assert!(ports.len() > 1 && ports.iter().all(|port| own.contains(port)), "{ports:?}");
        // The kernel leaves the last one out (udp_flow_src_port).
        assert_eq!(ports.contains(&5003), !has_device, "{ports:?}");
    }
}

#[test]
fn nodes_that_start_at_once_get_a_subnet_each() {
    let nodes = (1..=6).map(|nth| NodeSpec::new(&format!("node{nth}"), &[])).collect();
    // Three subnets are over.
    let config =
        r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.9.0","Backend":{"Type":"vxlan"}}"#;
    let mut bed = Bed::prepare(config, nodes, &[KERNEL]);
    bed.launch();
    let mut keys = ok(bed.store.keys(&format!("{PREFIX}/subnets/")));
    keys.dedup();
    assert_eq!(keys.len(), 6, "{keys:?}");
    for nth in 1..=6 {
        let routes = bed.shell(&format!("node{nth}"), "ip route show dev flannel.1");
        assert_eq!(routes.lines().count(), 5, "{routes}");
    }
}

#[test]
fn a_directory_serves_nodes_of_one_machine() {
    let mut bed = Bed::prepare(SINGLE, lab::LabSpec::default().nodes, &[]);
    let leases = bed.lab.directory("node1").join("leases");
    ok(fs::create_dir_all(&leases));
    ok(fs::write(leases.join("config.json"), SINGLE));
    let arguments = [KERNEL.to_owned(), format!("--subnet-store=dir:{}", leases.display())];
    let names = ["node1", "node2"];
    bed.agents = names
        .iter()
        .map(|node| ok(lab::agent::Agent::prepare_overlay(&bed.lab, node, &arguments)))
        .collect();
    bed.launch();
    // One lease goes, and with it the route there.
    bed.agents.pop();
    let theirs = format!("{}.json", bed.nodes(0)[0]);
    ok(fs::remove_file(leases.join(theirs)));
    eventually("the route is gone", || {
        bed.shell("node1", "ip route show dev flannel.1").is_empty().then_some(())
    });
}

#[test]
fn neighbours_need_no_tunnel_where_that_is_configured() {
    for backend in [r#"{"Type":"vxlan","DirectRouting":true}"#, r#"{"Type":"host-gw"}"#] {
        let config = DUAL.replace(r#"{"Type":"vxlan","VNI":1,"Port":8472}"#, backend);
        let bed = Bed::up(&config, &[]);
        let route = bed.shell("node1", "ip route show 10.244.2.0/24");
        assert!(route.starts_with("10.244.2.0/24 via 192.168.78.12 dev eth0 proto 77"), "{route}");
        bed.assert_joined();
        // A route through a router: no neighbour any more.
        bed.shell("node1", "ip route add 192.168.78.12/32 via 192.168.78.1");
        if backend.contains("vxlan") {
            eventually("the tunnel is used", || {
                let route = bed.shell("node1", "ip route get 10.244.2.10");
                route.contains("dev flannel.1").then_some(())
            });
        } else {
            eventually("the peer is a problem", || {
                let problems = bed.show(0, "status")["problems"].to_string();
                problems.contains("behind a router").then_some(())
            });
        }
        bed.shell("node1", "ip route del 192.168.78.12/32");
        eventually("the route is direct again", || {
            let route = bed.shell("node1", "ip route show 10.244.2.0/24");
            route.contains("via 192.168.78.12 dev eth0").then_some(())
        });
    }
}

#[test]
fn cleanup_leaves_nothing() {
    let mut bed = Bed::up(DUAL, &[]);
    ok(bed.agents[0].kill());
    let file = format!("--subnet-file={}", bed.lab.subnet_file("node1").display());
    let bpffs = format!("--bpffs={}", bed.lab.bpffs("node1").display());
    for _ in 0..2 {
        let output = ok(bed.agents[0].ask(&["cleanup", &file, &bpffs]));
        assert!(output.status.success(), "{output:?}");
    }
    let links = bed.shell("node1", "ip -o link; ip route; ip -6 route");
    assert!(!links.contains("flannel") && !links.contains("blackhole"), "{links}");
    assert!(!bed.lab.bpffs("node1").join("overlay").exists());
    assert!(!bed.lab.subnet_file("node1").exists());
    // And back, with the subnet that the lease still tells.
    ok(bed.agents[0].launch());
    ok(bed.agents[0].wait_ready());
    bed.assert_joined();
}

#[test]
fn metrics_and_health_tell_the_same_story() {
    let bed = Bed::up(DUAL, &[]);
    assert_eq!(ok(bed.agents[0].health("/healthz")), (200, "flanneld is running".into()));
    assert_eq!(ok(bed.agents[0].health("/readyz")), (200, "flanneld is ready".into()));
    let text = ok(bed.agents[0].metrics());
    for part in [
        "millrace_overlay_peers{path=\"vxlan\"} 2",
        "millrace_store_connected 1",
        "millrace_problems{kind=\"peer\"} 0",
        "millrace_lease_expiry_timestamp_seconds ",
        "millrace_overlay_packets_total{direction=\"out\"} ",
        "millrace_build_info{version=",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let status = bed.show(0, "status");
    assert_eq!(status["subnet"][0], "10.244.1.0/24");
    assert_eq!(status["problems"].as_array().map(Vec::len), Some(0), "{status}");
}
