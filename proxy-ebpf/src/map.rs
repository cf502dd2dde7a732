//! What both objects say of their maps.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;

/// Rows take memory when they are written.
pub const LAZY: usize = BPF_F_NO_PREALLOC as usize;

/// Declares maps by name and type.
#[macro_export]
macro_rules! maps {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {$(
        $(#[$doc])*
        #[btf_map]
        pub static $name: $type = <$type>::new();
    )*};
}
