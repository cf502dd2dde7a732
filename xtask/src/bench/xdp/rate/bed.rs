//! Two nodes, a pod on the second, and frames to the first one's NodePort.
//!
//! Frames are made where the client's would come from, at the other end of the first node's link, and
//! what the node sends toward the second is counted and dropped as soon as it has left: by the stack
//! behind all programs, by the driver at the link's other end. So neither costs much, and what is
//! measured is what lies between.

use std::{fs, net::SocketAddrV4, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Lab, LabSpec, NodeSpec, Process,
    agent::{Agent, AgentOptions},
    bench::{self, Driver, FRAME_IP_LENGTH, Frame, Order, Shot, Side, Word, port},
    kube_proxy,
    manifests::{self, Port},
    overlay::{self, Overlay},
};
use serde_json::Value;

use super::way::Way;
use crate::bench::peer::Peer;

const NODES: [&str; 2] = ["node1", "node2"];
const POD: &str = "pod2a";
const CLIENT: &str = "client";
/// What flanneld tells pods where nodes have 1500.
const POD_MTU: u16 = 1450;
/// The device of the fabric that the first node's uplink is the other end of.
const LINK: &str = "to-node1";

const CONFIG: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#;
/// Of VXLAN.
const TUNNEL_PORT: u16 = 8472;
const NODE_PORT: u16 = 30_004;
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 20];

/// Flows, which differ by the client's port: few, and as many as a power of two can be of the 10,000
/// that proxy-agent masquerades to one endpoint (`--nat-ports`).
pub(super) const FEW: u16 = 64;
pub(super) const MANY: u16 = 8_192;
const FIRST_PORT: u16 = 20_000;

const PATIENCE: Duration = Duration::from_secs(30);

/// What makes frames stays on this processor, before all that is not real-time. After each batch the
/// kernel does there what the node does with it, in the same thread and as its time.
const CPU: Option<usize> = Some(1);

/// Fields are dropped in this order: the lab goes last.
pub(super) struct Bed {
    pub(super) way: Way,
    client: Driver,
    shooter: Driver,
    catcher: Driver,
    proxies: Vec<Agent>,
    overlay: Option<Overlay>,
    peer: Option<Peer>,
    _server: Process,
    frame: Frame,
    lab: Lab,
}

impl Bed {
    pub(super) fn raise(way: Way, peers: Option<&Path>) -> Result<Self> {
        let nodes = vec![NodeSpec::new(NODES[0], &[]), NodeSpec::new(NODES[1], &[POD])];
        let lab =
            Lab::up(LabSpec { overlay: true, pod_mtu: POD_MTU, nodes, ..LabSpec::default() })?;
        // A driver's program meets no device that would complete a checksum.
        for end in [CLIENT, POD] {
            lab.shell(end, "ethtool -K eth0 tx off")?;
        }
        // By polling, as drivers of cards do; a veth receives frames of others' drivers only so.
        lab.shell(NODES[0], "ethtool -K eth0 gro on")?;
        let server = bench::serve(&lab.place(POD)?, None)?;
        let frame = Frame {
            from_mac: mac(&lab, CLIENT)?,
            to_mac: mac(&lab, NODES[0])?,
            from: SocketAddrV4::new(lab.addresses(CLIENT)?.v4, FIRST_PORT),
            to: target(&lab, way)?,
            flows: FEW,
        };
        let mut bed = Self {
            way,
            client: Driver::start(&lab.place(CLIENT)?, None)?,
            shooter: Driver::start(&lab.place("fabric")?, CPU)?,
            catcher: Driver::start(&lab.place(NODES[0])?, None)?,
            proxies: Vec::new(),
            overlay: None,
            peer: None,
            _server: server,
            frame,
            lab,
        };
        bed.serve(peers).with_context(|| format!("{} does not serve", way.name()))?;
        bed.spread()?;
        bed.greet()?;
        Ok(bed)
    }

    fn serve(&mut self, peers: Option<&Path>) -> Result<()> {
        let lab = &self.lab;
        if let Some(arguments) = self.way.overlay() {
            for (number, node) in (1..).zip(NODES) {
                overlay::remember(lab, node, number, 1)?;
            }
            self.overlay = Some(Overlay::join(lab, CONFIG, arguments)?);
        }
        lab.publish("nodes.yaml", &manifests::nodes(lab))?;
        let ports = [Port::udp("echo", port::ECHO, port::ECHO)];
        let service = manifests::Service::new("far")
            .cluster_ip(CLUSTER_IP.into())
            .set("/spec/ipFamilyPolicy", "SingleStack".into())
            .port(ports[0])
            .node_port(NODE_PORT);
        let [slice, _] = manifests::slices(lab, "far", &ports, &[POD])?;
        lab.publish("far.yaml", &[service.build(), slice])?;
        match self.way {
            Way::Native | Way::PacketPath => {
                let xdp = self.way.xdp().unwrap_or("off");
                for (node, xdp) in NODES.into_iter().zip([xdp, "off"]) {
                    let extra = vec!["--xdp".into(), xdp.into()];
                    let options = AgentOptions { extra, ..AgentOptions::default() };
                    self.proxies.push(Agent::start(lab, node, options)?);
                }
                self.prove_mode(xdp)?;
            }
            Way::Rules => {
                let file = lab.directory(NODES[0]).join("node-port.nft");
                let pod = lab.addresses(POD)?.v4;
                fs::write(&file, rules(&format!("{pod}:{}", port::ECHO)))?;
                lab.shell(NODES[0], &format!("nft -f {}", file.display()))?;
            }
            Way::KubeProxy(mode) => {
                for node in NODES {
                    kube_proxy::pass_bridged(&lab.place(node)?)?;
                }
                let mut peer = Peer::raise(lab, peers.context("no peers have been built")?)?;
                peer.tell(&lab.manifests(NODES[0]))?;
                peer.launch(mode)?;
                self.peer = Some(peer);
            }
            Way::Forwarded => {
                let pod = lab.addresses(POD)?.v4;
                let node = lab.addresses(NODES[0])?.v4;
                lab.shell(CLIENT, &format!("ip route add {pod}/32 via {node}"))?;
            }
            Way::Dropped => {}
        }
        Ok(())
    }

    /// Fails unless the driver's program is where it shall be.
    fn prove_mode(&self, xdp: &str) -> Result<()> {
        let agent = self.proxies.first().context("no agent runs")?;
        let output = agent.ask(&["status", "-o", "json"])?;
        let said: Value =
            serde_json::from_slice(&output.stdout).context("proxy-agent status: no JSON")?;
        let mode = said["xdp"][0]["mode"].as_str().unwrap_or("none");
        let expected = if xdp == "off" { "none" } else { xdp };
        ensure!(mode == expected, "proxy-agent runs with --xdp {xdp}, and says {}", said["xdp"]);
        Ok(())
    }

    /// Lays nets where frames leave the node. Only what is shot is caught, and only where the node
    /// has made of it what it should.
    fn spread(&mut self) -> Result<()> {
        let word = |at, is| Word { at, is };
        if self.way == Way::Dropped {
            let like = vec![word(12, 0x0800), word(16, FRAME_IP_LENGTH), word(36, NODE_PORT)];
            let device = "eth0".into();
            self.catcher.caught(&Order::Catch { device, at: Side::Driver, like })?;
            return Ok(());
        }
        let [a, b, c, d] = self.lab.addresses(POD)?.v4.octets();
        // Outer headers end at 50, the inner one of IP begins at 64.
        let like = vec![
            word(12, 0x0800),
            word(36, TUNNEL_PORT),
            word(66, FRAME_IP_LENGTH),
            word(80, u16::from_be_bytes([a, b])),
            word(82, u16::from_be_bytes([c, d])),
            word(86, port::ECHO),
        ];
        let order =
            |device: &str, at| Order::Catch { device: device.into(), at, like: like.clone() };
        self.catcher.caught(&order("eth0", Side::Egress))?;
        self.shooter.caught(&order(LINK, Side::Driver))?;
        Ok(())
    }

    /// Has every flow begun and answered, as a client would. Frames keep them from ending.
    fn greet(&mut self) -> Result<()> {
        if self.way == Way::Dropped {
            return Ok(());
        }
        let to = self.frame.to;
        // First until anything is answered at all: kube-proxy takes its time.
        let until = self.lab.addresses(POD)?.v4;
        let patience_millis = PATIENCE.as_millis() as u64;
        let order = Order::Follow { to, until, pause_micros: 5_000, patience_millis };
        let mut seen = self.client.see(&order)?;
        if seen.complete {
            seen = self.client.see(&Order::Greet { to, first: FIRST_PORT, count: MANY })?;
        }
        ensure!(
            seen.complete,
            "{}: of {} questions, {} are not answered",
            self.way.name(),
            seen.asked,
            seen.silent,
        );
        Ok(())
    }

    /// Shoots for so long; returns that, and how many frames left the node.
    pub(super) fn shoot(
        &mut self,
        flows: u16,
        millis: u64,
        rate: Option<u32>,
    ) -> Result<(Shot, u64)> {
        let before = self.caught()?;
        let frame = Frame { flows, ..self.frame };
        let order = Order::Shoot { device: LINK.into(), frame, millis, rate };
        let shot = self.shooter.shoot(&order)?;
        // What is on its way.
        thread::sleep(Duration::from_millis(20));
        let after = self.caught()?;
        let [by_stack, by_driver] = [0, 1].map(|side| after[side] - before[side]);
        let (others, all) = match self.way {
            Way::Native => (by_stack, by_stack + by_driver),
            _ => (by_driver, by_stack + by_driver),
        };
        ensure!(
            others * 100 <= all,
            "{}: {by_stack} frames left by the stack and {by_driver} by the driver: the figures are \
             not its",
            self.way.name()
        );
        Ok((shot, all))
    }

    /// Frames that were caught on their way out: by the stack, and by the driver.
    fn caught(&mut self) -> Result<[u64; 2]> {
        Ok([self.catcher.caught(&Order::Count)?, self.shooter.caught(&Order::Count)?])
    }
}

/// Whom the client asks.
fn target(lab: &Lab, way: Way) -> Result<SocketAddrV4> {
    Ok(match way {
        Way::Forwarded => SocketAddrV4::new(lab.addresses(POD)?.v4, port::ECHO),
        _ => SocketAddrV4::new(lab.addresses(NODES[0])?.v4, NODE_PORT),
    })
}

fn mac(lab: &Lab, place: &str) -> Result<[u8; 6]> {
    let text = lab.shell(place, "ip -j link show eth0")?;
    let said: Value = serde_json::from_str(&text).context("ip printed no JSON")?;
    let mac = said[0]["address"].as_str().context("eth0 has a MAC")?;
    let bytes: Result<Vec<u8>, _> =
        mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{mac} is no MAC"))
}

/// What a NodePort takes at the least: the pod's address, and the node's own as source.
fn rules(pod: &str) -> String {
    format!(
        "table ip node_port {{
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local udp dport {NODE_PORT} meta mark set mark or 0x4000 dnat to {pod}
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark & 0x4000 == 0x4000 masquerade fully-random
\t}}
}}
"
    )
}
