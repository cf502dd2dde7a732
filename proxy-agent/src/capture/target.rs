//! Devices whose frames the program sees, and the programs, as the agent has pinned them.

use std::os::fd::{AsFd, OwnedFd};

use agent_kit::{
    bpf::{self, XdpMode},
    link::Links,
    object::Pins,
    table::MapTable,
};
use datapath::nexthop::Uplink;

use super::CaptureError;
use crate::{show::ShowError, status, xdp};

/// A device, and who runs the program there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub device: u32,
    pub name: String,
    pub mode: Option<XdpMode>,
    pub program: u32,
}

/// All there are.
pub fn targets(pins: &Pins) -> Result<Vec<Target>, CaptureError> {
    let maps = pins.maps();
    // So that one who may not look is told so.
    let _uplinks: MapTable<u32, Uplink> =
        MapTable::open(&maps, "UPLINKS").map_err(ShowError::from)?;
    let links = Links::new(pins.links()).list()?;
    let found = links.iter().filter(|link| link.is_attached()).filter_map(|link| {
        let device = xdp::ifindex(&link.name)?;
        let (name, mode) = (status::device_name(device), xdp::mode_of(&maps, device));
        Some(Target { device, name, mode, program: link.info.program_id })
    });
    Ok(found.collect())
}

/// The pinned program of this number.
pub fn program(pins: &Pins, id: u32) -> Option<OwnedFd> {
    let names = [XdpMode::Native, XdpMode::Generic].map(xdp::program);
    let pinned = names.iter().filter_map(|name| bpf::obj_get(&pins.programs().join(name)).ok());
    pinned.into_iter().find(|pinned| bpf::program_id(pinned.as_fd()).is_ok_and(|found| found == id))
}
