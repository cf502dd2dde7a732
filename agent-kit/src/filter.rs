//! Which of our `clsact` filters are on the devices of this network namespace, as the kernel
//! lists them (`RTM_GETTFILTER`, include/uapi/linux/rtnetlink.h).

use std::{ffi::CStr, io};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::clsact::HANDLE;

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

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, and the same of egress.
const PARENTS: [(bool, u32); 2] = [(true, 0xffff_fff2), (false, 0xffff_fff3)];
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// `struct nlmsghdr` and `struct tcmsg`.
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// All of ours, device by device.
pub fn filters() -> io::Result<Vec<Filter>> {
    // No protocol is NETLINK_ROUTE, which is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut filters = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    for (ifindex, device) in devices() {
        for (is_ingress, parent) in PARENTS {
            send(&socket, &request(ifindex, parent), SendFlags::empty())?;
            loop {
                let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
                let (found, is_end) = parse(&buffer[..length]);
                filters.extend(found.into_iter().map(|filter| Filter {
                    device: device.clone(),
                    is_ingress,
                    ..filter
                }));
                if is_end {
                    break;
                }
            }
        }
    }
    Ok(filters)
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

fn request(ifindex: u32, parent: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + TCMSG);
    message.extend(((HEADER + TCMSG) as u32).to_ne_bytes());
    message.extend(RTM_GETTFILTER.to_ne_bytes());
    message.extend(DUMP.to_ne_bytes());
    // Sequence and port, then family and padding.
    message.extend([0; 12]);
    message.extend(ifindex.to_ne_bytes());
    // Any handle.
    message.extend([0; 4]);
    message.extend(parent.to_ne_bytes());
    // Any priority and protocol.
    message.extend([0; 4]);
    message
}

/// Our filters in one answer, and whether it was the last. A device without the queueing
/// discipline answers with an error, which is as good as an empty list.
fn parse(mut answer: &[u8]) -> (Vec<Filter>, bool) {
    let mut filters = Vec::new();
    while let (Some(length), Some(kind)) = (u32_at(answer, 0), u16_at(answer, 4)) {
        if matches!(kind, NLMSG_DONE | NLMSG_ERROR) {
            return (filters, true);
        }
        let length = length as usize;
        let Some(message) = answer.get(HEADER..length) else { return (filters, true) };
        if kind == RTM_NEWTFILTER {
            filters.extend(filter(message));
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (filters, false)
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

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Bits of the kind that are flags.
    const FLAGS: u16 = 0xc000;
    loop {
        let (length, kind) = (u16_at(attributes, 0)? as usize, u16_at(attributes, 2)?);
        let value = attributes.get(4..length)?;
        if kind & !FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(handle: u32) -> Vec<u8> {
        let mut options = attribute_of(TCA_BPF_NAME, b"pod_ingress\0");
        options.extend(attribute_of(TCA_BPF_ID, &77_u32.to_ne_bytes()));
        let mut body = vec![0; 8];
        body.extend(handle.to_ne_bytes());
        body.extend([0; 4]);
        body.extend((1_u32 << 16 | 3).to_ne_bytes());
        body.extend(attribute_of(TCA_KIND, b"bpf\0"));
        body.extend(attribute_of(TCA_OPTIONS, &options));
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(RTM_NEWTFILTER.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn only_filters_with_our_handle_are_ours() {
        let mut answer = message(1);
        answer.extend(message(HANDLE.into()));
        let (filters, is_end) = parse(&answer);
        assert!(!is_end);
        let [filter] = &filters[..] else { panic!("{filters:?}") };
        assert_eq!((filter.priority, filter.program_id), (1, 77));
        assert_eq!(filter.program, "pod_ingress");
    }

    #[test]
    fn an_answer_that_is_cut_off_or_an_error_ends_the_list() {
        let whole = message(HANDLE.into());
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]).0, []);
        }
        let mut done = 36_u32.to_ne_bytes().to_vec();
        done.extend(NLMSG_ERROR.to_ne_bytes());
        assert_eq!(parse(&done), (vec![], true));
    }
}
