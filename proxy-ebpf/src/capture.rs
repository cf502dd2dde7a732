//! Entry points of the capture object: run before and behind the program that sees frames of uplinks
//! first (XDP), for as long as somebody captures. They tell of the frame, and change nothing.
#![no_std]
#![no_main]

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_CURRENT_CPU,
    btf_maps::{Array, PerCpuArray, PerfEventByteArray},
    helpers::generated as helper,
    macros::{btf_map, fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use datapath::capture::{Places, Seen, UNDECIDED};

/// The kernel lets only programs that are free in its sense copy frames out.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[btf_map]
static SEEN: PerfEventByteArray = PerfEventByteArray::new();
#[btf_map]
static PLACES: Array<Places, 1> = Array::new();
/// Frames that there was no room for.
#[btf_map]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

#[fentry]
pub fn frame_in(context: FEntryContext) -> i32 {
    tell(context.arg(0), UNDECIDED)
}

/// The kernel gives the arguments, and behind them what the program returned.
#[fexit]
pub fn frame_out(context: FExitContext) -> i32 {
    tell(context.arg(0), context.arg(1))
}

/// `frame` is the kernel's `struct xdp_buff`, of which no layout is promised.
#[inline(always)]
fn tell(frame: *mut c_void, verdict: u32) -> i32 {
    let Some(&places) = PLACES.get(0) else { return 0 };
    // SAFETY: the helper takes the kernel's frame.
    let length = unsafe { helper::bpf_xdp_get_buff_len(frame.cast()) } as u32;
    let captured = length.min(places.snap_length);
    let mut seen = Seen {
        // SAFETY: the helper takes nothing.
        time: unsafe { helper::bpf_ktime_get_ns() },
        device: device(frame, &places),
        length,
        captured,
        verdict,
    };
    let flags = u64::from(captured) << 32 | BPF_F_CURRENT_CPU as u64;
    // SAFETY: the helper reads so much of the frame as is there, and the structure.
    let result = unsafe {
        helper::bpf_xdp_output(
            frame,
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

/// Interface index of the device that the frame came in by; zero if that cannot be told.
#[inline(always)]
fn device(frame: *mut c_void, places: &Places) -> u32 {
    let follow = |from: *const c_void, by: u16| read::<*const c_void>(from, by);
    follow(frame, places.queue)
        .and_then(|queue| follow(queue, places.device))
        .and_then(|device| read(device, places.index))
        .unwrap_or(0)
}

/// What stands so many bytes behind an address of the kernel's.
#[inline(always)]
fn read<T: Copy>(from: *const c_void, by: u16) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    let from = from.wrapping_byte_add(by as usize);
    // SAFETY: the helper writes the value whole, or zeros, and checks the address.
    unsafe {
        let size = size_of::<T>() as u32;
        let result = helper::bpf_probe_read_kernel(value.as_mut_ptr().cast(), size, from.cast());
        (result == 0).then(|| value.assume_init())
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // No program contains a reachable panic: the verifier would refuse the endless loop.
    loop {}
}
