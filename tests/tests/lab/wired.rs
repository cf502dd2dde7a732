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
    _peers: Stranger,
}

impl Wired {
    /// Makes a lab so.
    pub(crate) fn up(lab: &Lab) -> Result<Self> {
        let ports: Vec<String> =
            lab.spec().nodes.iter().map(|node| format!("to-{}", node.name)).collect();
        let stranger = Stranger::on(lab, "fabric", &ports, XdpMode::Native)?;
        let ends = lab.spec().nodes().flat_map(|(_, node)| node.pods().map(|(_, pod)| pod));
        for end in ends.chain(["client"]) {
            lab.shell(end, "ethtool -K eth0 tx off")?;
        }
        Ok(Self { _peers: stranger })
    }
}

/// A program that is none of an agent's, on devices of a place for as long as this lives. It passes
/// all: it is the agent's own, and no row tells it of a device.
pub(crate) struct Stranger {
    _links: Vec<OwnedFd>,
    _programs: Ebpf,
}

impl Stranger {
    pub(crate) fn on(lab: &Lab, place: &str, devices: &[String], mode: XdpMode) -> Result<Self> {
        let path = lab::dist().with_file_name("bpf").join("proxy.o");
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let mut programs = object::load_private(&bytes)?;
        let name = match mode {
            XdpMode::Native => "xdp_ingress",
            XdpMode::Generic => "xdp_generic",
        };
        let program = programs.program_mut(name).context("the object has the program")?;
        program::load(program)?;
        let fd = program.fd()?.as_fd();
        let mut links = Vec::new();
        for device in devices {
            let index = index(lab, place, device)?;
            links.push(lab.enter(place, || bpf::link_create_xdp(fd, index, mode))??);
        }
        Ok(Self { _links: links, _programs: programs })
    }
}

/// The interface index of a place's device.
pub(crate) fn index(lab: &Lab, place: &str, device: &str) -> Result<u32> {
    let listed = lab.shell(place, &format!("ip -o link show {device}"))?;
    let (index, _) = listed.split_once(':').context("INDEX: NAME")?;
    Ok(index.parse()?)
}
