//! Labs whose veths can run XDP programs as drivers do.

use crate::{Lab, Result};

/// Gives a lab's veths what a program of a driver needs. Ends that send sum up their checksums, which a
/// program could not tell from those that nobody has summed up. And the peers of nodes poll for frames
/// that are sent back to them, as they do with GRO (Linux commit d3256efd8e8b); what that has put
/// together is divided again before it goes to a node.
pub fn wire(lab: &Lab) -> Result<()> {
    for node in &lab.spec().nodes {
        lab.shell("fabric", &format!("ethtool -K to-{} gro on", node.name))?;
    }
    let ends = lab.spec().nodes().flat_map(|(_, node)| node.pods().map(|(_, pod)| pod));
    for end in ends.chain(["client"]) {
        lab.shell(end, "ethtool -K eth0 tx off")?;
    }
    Ok(())
}
