//! Devices whose frames the program sees.

use agent_kit::{bpf::XdpMode, link::Links, object::Pins};

use super::CaptureError;
use crate::{status, xdp};

/// A device, and who runs the program there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub device: u32,
    pub name: String,
    pub mode: Option<XdpMode>,
}

/// All there are.
pub fn targets(pins: &Pins) -> Result<Vec<Target>, CaptureError> {
    let maps = pins.maps();
    let links = Links::new(pins.links()).list()?;
    let found = links.iter().filter(|link| link.is_attached()).filter_map(|link| {
        let device = xdp::ifindex(&link.name)?;
        let (name, mode) = (status::device_name(device), xdp::mode_of(&maps, device));
        Some(Target { device, name, mode })
    });
    Ok(found.collect())
}
