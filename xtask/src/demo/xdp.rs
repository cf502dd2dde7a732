//! The part of the demo that shows frames which the kernel never makes socket buffers of: both legs of
//! a NodePort whose pod is behind the tunnel.

use anyhow::{Context, Result, ensure};
use lab::{
    Lab,
    agent::Agent,
    peer::{self, Exchange, Protocol},
};
use serde_json::Value;

use super::{FAR, Target};

/// What is sent each way.
const BYTES: u64 = 4 << 20;
/// A packet of it is no longer.
const LONGEST: u64 = 1_500;

/// Packets so far: of requests and of replies that were dealt with before the kernel saw them, and those
/// that the tunnel device saw.
#[derive(Clone, Copy)]
struct Seen {
    requests: u64,
    replies: u64,
    device: u64,
}

impl Seen {
    fn read(lab: &Lab, proxy: &Agent) -> Result<Self> {
        let metrics = proxy.metrics()?;
        let listed = lab.shell("node1", "ip -s -j link show flannel.1")?;
        let listed: Value = serde_json::from_str(&listed).context("ip -j")?;
        let device = |way: &str| listed[0]["stats64"][way]["packets"].as_u64().unwrap_or_default();
        Ok(Self {
            requests: carried(&metrics, "tunnel")?,
            replies: carried(&metrics, "tunnel_back")?,
            device: device("rx") + device("tx"),
        })
    }

    const fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            replies: self.replies - before.replies,
            device: self.device - before.device,
        }
    }
}

/// The value of `millrace_xdp_packets_total` for a leg.
fn carried(metrics: &str, leg: &str) -> Result<u64> {
    let sample = format!("millrace_xdp_packets_total{{leg=\"{leg}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    value.with_context(|| format!("the agent tells no {sample}"))?.parse().context("a count")
}

/// The same transfers by the packet path and by XDP; returns how many did not go as they should.
pub(super) fn show(lab: &Lab, proxy: &mut Agent) -> Result<usize> {
    // Sums that a veth's peer leaves out are for the packet path (docs/xdp.md).
    for end in ["client", "pod2a"] {
        lab.shell(end, "ethtool -K eth0 tx off")?;
    }
    println!(
        "\n{:<13} {:<8} {:<21} {:<14} {:>15} {:>14} {:>14}  RESULT",
        "XDP OF node1",
        "FROM",
        "ASKED",
        "MIB EACH WAY",
        "REQUESTS BY XDP",
        "REPLIES BY XDP",
        "BY flannel.1"
    );
    let mut wrong = 0;
    for mode in ["off", "generic"] {
        proxy.change_argument(&format!("--xdp={mode}"));
        proxy.restart()?;
        for v6 in [false, true] {
            wrong += usize::from(!transfer(lab, proxy, mode, v6)?);
        }
    }
    Ok(wrong)
}

/// True if all arrived, by the way that it should have.
fn transfer(lab: &Lab, proxy: &Agent, mode: &str, v6: bool) -> Result<bool> {
    let to = Target::NodePort(&FAR, "node1").address(lab, Protocol::Tcp, v6)?;
    let before = Seen::read(lab, proxy)?;
    let outcome = peer::exchange(&lab.place("client")?, to, BYTES)?;
    let seen = Seen::read(lab, proxy)?.since(before);
    let is_by_xdp = seen.requests.min(seen.replies) > BYTES / LONGEST;
    let fault = if outcome != Exchange::whole(BYTES) {
        Some(format!("WRONG: {outcome:?}"))
    } else if mode == "off" {
        None
    } else if !is_by_xdp {
        Some("WRONG: both legs should be by XDP".into())
    } else if seen.device * 10 > seen.requests {
        Some("WRONG: the tunnel device should see next to nothing".into())
    } else {
        None
    };
    println!(
        "{mode:<13} {:<8} {:<21} {:<14} {:>15} {:>14} {:>14}  {}",
        "client",
        to.to_string(),
        BYTES >> 20,
        seen.requests,
        seen.replies,
        seen.device,
        fault.as_deref().unwrap_or("ok"),
    );
    ensure!(seen.requests == 0 || mode != "off", "--xdp off, and packets were dealt with by XDP");
    Ok(fault.is_none())
}
