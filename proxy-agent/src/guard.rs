//! What sees or limits packets on devices toward pods, and would be passed by on the fast path.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use agent_kit::{
    bpf, filter,
    link::{LinkError, Links},
};

use crate::netlink::{Link, Network};

/// Where both agents' links are pinned, below the path of `--bpffs`.
const LINKS: [&str; 2] = ["proxy/links", "overlay/links"];

/// Devices of pods, and bridges, on which anything but our own programs has a say, in words, or of which the
/// kernel does not tell.
pub fn guards(network: &Network, bpffs: &Path) -> BTreeMap<u32, String> {
    let toward_pods = |link: &&Link| link.is_bridge || link.is_veth && link.peer_is_elsewhere;
    let links = || network.links.iter().filter(toward_pods);
    let own = own(bpffs).map_err(|err| err.to_string());
    let filtered = filter::with_others(links().map(|link| link.index));
    let filtered = filtered.map_err(|err| err.to_string());
    let guard = |link: &Link| {
        let own = own.as_ref().map_err(String::clone)?;
        let filtered = filtered.as_ref().map_err(String::clone)?;
        of(link, own, filtered).map_err(|err| err.to_string())
    };
    let unknown = |err| Some(format!("cannot be asked for programs: {err}"));
    links().filter_map(|link| Some((link.index, guard(link).unwrap_or_else(unknown)?))).collect()
}

fn of(link: &Link, own: &BTreeSet<u32>, filtered: &BTreeSet<u32>) -> io::Result<Option<String>> {
    if let Some(shaper) = &link.shaper {
        return Ok(Some(format!("has the queueing discipline {shaper}")));
    }
    if let Some(id) = bpf::tcx_programs(link.index)?.into_iter().find(|id| !own.contains(id)) {
        return Ok(Some(format!("has another's program, {id}")));
    }
    Ok(filtered.contains(&link.index).then(|| "has another's filter".into()))
}

/// The programs that both agents have attached.
fn own(bpffs: &Path) -> Result<BTreeSet<u32>, LinkError> {
    let mut own = BTreeSet::new();
    for directory in LINKS {
        let links = Links::new(bpffs.join(directory)).list()?;
        own.extend(links.into_iter().map(|link| link.info.program_id));
    }
    Ok(own)
}
