//! Copies of frames for those who capture.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_CPU, xdp_md},
    btf_maps::{Array, PerCpuArray, PerfEventByteArray},
    helpers::generated as helper,
    macros::btf_map,
};
use datapath::capture::{Capture, Seen};

use crate::{global, maps};

maps! {
    CAPTURE: Array<Capture, 1>,
    /// A ring for each processor, which is there while somebody captures.
    SEEN: PerfEventByteArray,
    /// Frames that a ring had no room for.
    LOST: PerCpuArray<u64, 1>,
}

/// True while somebody may capture. Asked anew where a frame leaves: the verifier would follow all that is
/// between twice, if the answer were kept.
#[inline(always)]
pub fn is_on() -> bool {
    CAPTURE.get(0).is_some_and(|capture| capture.until != 0)
}

/// Tells of a frame before the program, or of what it says behind it.
#[inline(always)]
fn tell(frame: *mut xdp_md, verdict: u32) -> u32 {
    let Some(capture) = CAPTURE.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map's row stays readable and writable while the program runs.
    let capture = unsafe { &mut *capture };
    // SAFETY: the helper takes nothing.
    let time = unsafe { helper::bpf_ktime_get_ns() };
    if time > capture.until {
        capture.until = 0;
        return 0;
    }
    // SAFETY: the helper takes the kernel's context.
    let length = unsafe { helper::bpf_xdp_get_buff_len(frame) } as u32;
    let captured = length.min(capture.snap_length);
    // SAFETY: the kernel's context.
    let device = unsafe { (*frame).ingress_ifindex };
    let mut seen = Seen { time, device, length, captured, verdict };
    let flags = u64::from(captured) << 32 | BPF_F_CURRENT_CPU as u64;
    // SAFETY: the helper reads so much of the frame as is there, and the structure.
    let result = unsafe {
        helper::bpf_perf_event_output(
            frame.cast(),
            (&raw const SEEN).cast_mut().cast(),
            flags,
            (&raw mut seen).cast(),
            size_of::<Seen>() as u64,
        )
    };
    if result != 0
        && let Some(lost) = LOST.get_ptr_mut(0)
    {
        // SAFETY: the row is this processor's own.
        unsafe { *lost += 1 };
    }
    0
}

global! {
    told(frame: *mut xdp_md, verdict: u32) = tell(frame, verdict);
}
