//! Which of our `clsact` filters are on the devices of this network namespace, as the kernel
//! lists them (`RTM_GETTFILTER`, include/uapi/linux/rtnetlink.h), and its word that some were
//! removed.

use std::{collections::BTreeSet, ffi::CStr, io};

use crate::{
    clsact::HANDLE,
    dump::{Dump, attribute, text, u16_at, u32_at},
    notice::Word,
};

/// A filter of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    pub device: String,
    pub is_ingress: bool,
    pub priority: u16,
    pub handle: u32,
    /// The program's name.
    pub program: String,
    pub program_id: u32,
}

const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, and the same of egress.
const PARENTS: [(bool, u32); 2] = [(true, 0xffff_fff2), (false, 0xffff_fff3)];
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// `RTNLGRP_TC`, as a bit of a socket's groups.
const TC_GROUP: u32 = 1 << 3;
/// `struct tcmsg`.
const TCMSG: usize = 20;

/// All of ours, device by device.
pub fn filters() -> io::Result<Vec<Filter>> {
    filters_of(devices().iter().map(|(ifindex, name)| (*ifindex, name.as_str())))
}

/// Those of ours that are on these devices, by index and name.
pub fn filters_of<'a>(devices: impl Iterator<Item = (u32, &'a str)>) -> io::Result<Vec<Filter>> {
    let mut dump = Dump::open(None)?;
    let mut filters = Vec::new();
    for (ifindex, device) in devices {
        for (is_ingress, parent) in PARENTS {
            dump.ask(RTM_GETTFILTER, &request(ifindex, parent), RTM_NEWTFILTER, |message| {
                let found = filter(message);
                filters.extend(found.map(|filter| Filter {
                    device: device.into(),
                    is_ingress,
                    ..filter
                }));
            })?;
        }
    }
    Ok(filters)
}

/// Those of these devices that have filters that are none of ours.
pub fn with_others(devices: impl Iterator<Item = u32>) -> io::Result<BTreeSet<u32>> {
    let mut dump = Dump::open(None)?;
    let mut found = BTreeSet::new();
    for ifindex in devices {
        for (_, parent) in PARENTS {
            dump.ask(RTM_GETTFILTER, &request(ifindex, parent), RTM_NEWTFILTER, |message| {
                // A row without a handle tells of the list alone.
                let handle = u32_at(message, 8).unwrap_or(0);
                if handle != 0 && handle != u32::from(HANDLE) {
                    found.insert(ifindex);
                }
            })?;
        }
    }
    Ok(found)
}

/// Word that filters, or what they hang on, were removed. Needs a tokio runtime.
pub fn notices() -> io::Result<Word> {
    Word::of(None, TC_GROUP, is_removal)
}

/// What is added is mostly our own doing. A datagram tells one thing.
fn is_removal(message: &[u8]) -> bool {
    u16_at(message, 4).is_some_and(|kind| matches!(kind, RTM_DELQDISC | RTM_DELTFILTER))
}

/// Index and name of each device.
fn devices() -> Vec<(u32, String)> {
    let mut devices = Vec::new();
    // SAFETY: the list is read up to its end mark and freed once, below.
    unsafe {
        let list = libc::if_nameindex();
        let mut at = list;
        while !at.is_null() && (*at).if_index != 0 {
            let name = CStr::from_ptr((*at).if_name).to_string_lossy().into_owned();
            devices.push(((*at).if_index, name));
            at = at.add(1);
        }
        if !list.is_null() {
            libc::if_freenameindex(list);
        }
    }
    devices
}

/// `struct tcmsg`: any handle, priority and protocol.
fn request(ifindex: u32, parent: u32) -> [u8; TCMSG] {
    let mut message = [0; TCMSG];
    message[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    message[12..16].copy_from_slice(&parent.to_ne_bytes());
    message
}

fn filter(message: &[u8]) -> Option<Filter> {
    let handle = u32_at(message, 8).filter(|handle| *handle == u32::from(HANDLE))?;
    let priority = (u32_at(message, 16)? >> 16) as u16;
    let attributes = message.get(TCMSG..)?;
    if text(attribute(attributes, TCA_KIND)?) != "bpf" {
        return None;
    }
    let options = attribute(attributes, TCA_OPTIONS)?;
    Some(Filter {
        device: String::new(),
        is_ingress: false,
        priority,
        handle,
        program: attribute(options, TCA_BPF_NAME).map(text).unwrap_or_default(),
        program_id: attribute(options, TCA_BPF_ID).and_then(|id| u32_at(id, 0)).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::attribute_of;

    fn message(handle: u32) -> Vec<u8> {
        let mut options = attribute_of(TCA_BPF_NAME, b"pod_ingress\0");
        options.extend(attribute_of(TCA_BPF_ID, &77_u32.to_ne_bytes()));
        let mut message = vec![0; 8];
        message.extend(handle.to_ne_bytes());
        message.extend([0; 4]);
        message.extend((1_u32 << 16 | 3).to_ne_bytes());
        message.extend(attribute_of(TCA_KIND, b"bpf\0"));
        message.extend(attribute_of(TCA_OPTIONS, &options));
        message
    }

    #[test]
    fn only_filters_with_our_handle_are_ours() {
        assert_eq!(filter(&message(1)), None);
        let filter = filter(&message(HANDLE.into())).unwrap();
        assert_eq!((filter.priority, filter.program_id), (1, 77));
        assert_eq!(filter.program, "pod_ingress");
    }
}
