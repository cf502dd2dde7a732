//! Why packets were dropped or answered, and on which hook: the index into the per-CPU array
//! `DROPS`.

/// An enumeration with numbers for tables and names for metrics.
macro_rules! numbered {
    ($(#[$doc:meta])* $kind:ident $(
        $(#[$about:meta])* $variant:ident = $number:literal, $label:literal;
    )*) => {
        $(#[$doc])*
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $kind {$(
            $(#[$about])*
            $variant = $number,
        )*}

        impl $kind {
            pub const ALL: [Self; [$($number),*].len()] = [$(Self::$variant),*];

            /// The value of the metrics label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }

            /// The one with a number.
            #[inline(always)]
            #[must_use]
            pub const fn numbered(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// Why the packet path did not pass a packet on.
    Reason
    /// The Service has no endpoint at all; answered with ICMP port unreachable.
    NoEndpoints = 0, "no_endpoints";
    /// Endpoints exist, but none that the traffic policy allows.
    TrafficPolicy = 1, "traffic_policy";
    /// A cluster IP without a Service on this port; answered with ICMP port unreachable.
    UnknownPort = 2, "unknown_port";
    /// TCP segment to a frontend without a flow and without SYN; answered with RST.
    NotSyn = 3, "not_syn";
    /// A flow could not be stored: the flow table is full of live flows.
    FlowTableFull = 4, "flow_table_full";
    /// No free source port for masquerading.
    NatPortsExhausted = 5, "nat_ports_exhausted";
    /// The device that the packet leaves by has no address to masquerade with.
    NoMasqueradeAddress = 6, "no_masquerade_address";
    /// A later fragment whose first fragment was not seen.
    FragmentWithoutFirst = 7, "fragment_without_first";
    /// A header that ends before its fixed part, or lengths that contradict each other.
    Malformed = 8, "malformed";
    /// IPv6 extension headers beyond what is parsed (more than eight, or AH, ESP, unknown).
    ExtensionHeader = 9, "extension_header";
    /// ICMP redirect about a translated flow.
    IcmpRedirect = 10, "icmp_redirect";
    /// The packet could not be rewritten (the kernel refused to make it writable).
    RewriteFailed = 11, "rewrite_failed";
    /// A backend set changed under the reader too often; nothing that should ever count.
    BackendSetTorn = 12, "backend_set_torn";
    /// The client's tuple toward the chosen backend serves another frontend already, and so do those
    /// by other ports that were tried for it.
    TupleInUse = 13, "tuple_in_use";
    /// To a pod network that no node has; answered with ICMP host unreachable.
    NoPeer = 14, "no_peer";
    /// Out of a tunnel of another network, or of none.
    WrongVni = 15, "wrong_vni";
    /// Out of the tunnel, for another device than this node's.
    WrongMac = 16, "wrong_mac";
    /// Out of the tunnel, from a device that no lease tells of.
    UnknownPeer = 17, "unknown_peer";
    /// On the tunnel device, and no IP packet.
    NotIp = 18, "not_ip";
    /// To a load balancer's address, from a source that its Service's ranges do not admit.
    SourceRange = 19, "source_range";
    /// To an address out of which cluster IPs are given, and that no Service has.
    UnallocatedAddress = 20, "unallocated_address";
    /// SCTP packet to a frontend without a flow and without INIT.
    NotInit = 21, "not_init";
    /// First fragment of an SCTP packet whose port is another on each side: the checksum would have
    /// to change by what only the whole packet tells.
    SctpFragment = 22, "sctp_fragment";
    /// TCP segment of a connection whose endpoint has left its Service; answered with RST.
    EndpointGone = 23, "endpoint_gone";
    /// Would begin a flow, from a source outside that begins more than it may.
    SourceRate = 24, "source_rate";
}

numbered! {
    /// Which program saw the packet.
    Hook
    Socket = 0, "socket";
    PodIngress = 1, "pod_ingress";
    PodEgress = 2, "pod_egress";
    UplinkIngress = 3, "uplink_ingress";
    UplinkEgress = 4, "uplink_egress";
    TunnelIngress = 5, "tunnel_ingress";
    TunnelEgress = 6, "tunnel_egress";
    XdpIngress = 7, "xdp_ingress";
}

/// Rows per hook in `DROPS`.
const REASONS: u32 = 32;

/// Length of `DROPS`.
pub const DROPS_LEN: usize = 8 * REASONS as usize;

/// Index into `DROPS`.
#[inline(always)]
#[must_use]
pub const fn drop_index(hook: Hook, reason: Reason) -> u32 {
    hook as u32 * REASONS + reason as u32
}
