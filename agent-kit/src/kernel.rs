//! What the running kernel is able to.

use std::{fs, io, path::Path};

/// Flags of `bpf_l4_csum_replace`.
const PSEUDO_HEADER: u32 = 0x10;
const IPV6: u32 = 0x80;

/// The kernel that brought [`IPV6`] (commit "bpf: Fix L4 csum update on IPv6 in
/// CHECKSUM_COMPLETE").
const IPV6_FLAG_SINCE: (u32, u32) = (6, 16);

/// Flags with which programs change a checksum over an IPv6 address.
pub fn ipv6_checksum_flags() -> io::Result<u32> {
    let ipv6 = if version()? >= IPV6_FLAG_SINCE { IPV6 } else { 0 };
    Ok(PSEUDO_HEADER | ipv6)
}

/// False where it was left out of the kernel, or switched off for good when it booted
/// (`ipv6.disable=1`); what `disable_ipv6` switches off may come back.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// Major and minor version.
pub fn version() -> io::Result<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(io::Error::other(format!("cannot read kernel version {text:?}"))),
    }
}
