//! Labs whose veths can run XDP programs as drivers do.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
};

use agent_kit::{
    bpf::{self, XdpMode},
    object, program,
};
use anyhow::{Context, Result};
use aya::Ebpf;
use lab::Lab;

/// What a veth needs for a program of its driver: ends that send whole checksums, and a peer that polls
/// for what is sent back to it, which it does if it has a program, too.
pub(crate) struct Wired {
    _links: Vec<OwnedFd>,
    _programs: Ebpf,
}

impl Wired {
    /// Makes a lab so.
    pub(crate) fn up(lab: &Lab) -> Result<Self> {
        // The same program: it passes all, where no row tells it of its device.
        let path = lab::dist().with_file_name("bpf").join("proxy.o");
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let mut programs = object::load_private(&bytes)?;
        let program = programs.program_mut("xdp_ingress").context("the object has the program")?;
        program::load(program)?;
        let fd = program.fd()?.as_fd();
        let mut links = Vec::new();
        for node in &lab.spec().nodes {
            let port = format!("to-{}", node.name);
            let listed = lab.shell("fabric", &format!("ip -o link show {port}"))?;
            let (index, _) = listed.split_once(':').context("INDEX: NAME")?;
            let index = index.parse()?;
            let link = lab.enter("fabric", || bpf::link_create_xdp(fd, index, XdpMode::Native))?;
            links.push(link?);
        }
        let ends = lab.spec().nodes().flat_map(|(_, node)| node.pods().map(|(_, pod)| pod));
        for end in ends.chain(["client"]) {
            lab.shell(end, "ethtool -K eth0 tx off")?;
        }
        Ok(Self { _links: links, _programs: programs })
    }
}
