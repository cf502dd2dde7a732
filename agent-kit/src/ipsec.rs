//! Whether the kernel encrypts packets of this network namespace (XFRM): it would decide over each
//! packet to another node where a program sends it past, and over each that has come.

use std::io;

use rustix::{io::Errno, net::netlink};

use crate::dump::Dump;

/// `XFRM_MSG_NEWPOLICY` and `XFRM_MSG_GETPOLICY` (include/uapi/linux/xfrm.h).
const NEW_POLICY: u16 = 0x13;
const GET_POLICY: u16 = 0x15;
/// `struct xfrm_userpolicy_id`: a list asks for none in particular.
const POLICY_ID: usize = 64;

/// True if there is any policy but those of single sockets.
pub fn has_policies() -> io::Result<bool> {
    let mut dump = match Dump::open(Some(netlink::XFRM)) {
        // A kernel without it.
        Err(err) if err.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()) => {
            return Ok(false);
        }
        dump => dump?,
    };
    let mut found = false;
    dump.ask(GET_POLICY, &[0; POLICY_ID], NEW_POLICY, |_| found = true)?;
    Ok(found)
}
