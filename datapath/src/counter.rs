//! Why packets were dropped or answered, and on which hook: the index into the per-CPU array
//! `DROPS`.

/// Why the packet path did not pass a packet on.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The Service has no endpoint at all; answered with ICMP port unreachable.
    NoEndpoints = 0,
    /// Endpoints exist, but none that the traffic policy allows.
    TrafficPolicy = 1,
    /// A cluster IP without a Service on this port; answered with ICMP port unreachable.
    UnknownPort = 2,
    /// TCP segment to a frontend without a flow and without SYN; answered with RST.
    NotSyn = 3,
    /// A flow could not be stored: the flow table is full of live flows.
    FlowTableFull = 4,
    /// No free source port for masquerading.
    NatPortsExhausted = 5,
    /// The device that the packet leaves by has no address to masquerade with.
    NoMasqueradeAddress = 6,
    /// A later fragment whose first fragment was not seen.
    FragmentWithoutFirst = 7,
    /// A header that ends before its fixed part, or lengths that contradict each other.
    Malformed = 8,
    /// IPv6 extension headers beyond what is parsed (more than eight, or AH, ESP, unknown).
    ExtensionHeader = 9,
    /// ICMP redirect about a translated flow.
    IcmpRedirect = 10,
    /// The packet could not be rewritten (the kernel refused to make it writable).
    RewriteFailed = 11,
    /// A backend set changed under the reader too often; nothing that should ever count.
    BackendSetTorn = 12,
    /// The client's tuple toward the chosen backend serves another frontend already, so that
    /// replies could not be told apart.
    TupleInUse = 13,
}

impl Reason {
    pub const ALL: [Self; 14] = [
        Self::NoEndpoints,
        Self::TrafficPolicy,
        Self::UnknownPort,
        Self::NotSyn,
        Self::FlowTableFull,
        Self::NatPortsExhausted,
        Self::NoMasqueradeAddress,
        Self::FragmentWithoutFirst,
        Self::Malformed,
        Self::ExtensionHeader,
        Self::IcmpRedirect,
        Self::RewriteFailed,
        Self::BackendSetTorn,
        Self::TupleInUse,
    ];

    /// The value of the metrics label `reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::TrafficPolicy => "traffic_policy",
            Self::UnknownPort => "unknown_port",
            Self::NotSyn => "not_syn",
            Self::FlowTableFull => "flow_table_full",
            Self::NatPortsExhausted => "nat_ports_exhausted",
            Self::NoMasqueradeAddress => "no_masquerade_address",
            Self::FragmentWithoutFirst => "fragment_without_first",
            Self::Malformed => "malformed",
            Self::ExtensionHeader => "extension_header",
            Self::IcmpRedirect => "icmp_redirect",
            Self::RewriteFailed => "rewrite_failed",
            Self::BackendSetTorn => "backend_set_torn",
            Self::TupleInUse => "tuple_in_use",
        }
    }
}

/// Which program saw the packet.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Socket = 0,
    PodIngress = 1,
    PodEgress = 2,
    UplinkIngress = 3,
    UplinkEgress = 4,
}

impl Hook {
    pub const ALL: [Self; 5] =
        [Self::Socket, Self::PodIngress, Self::PodEgress, Self::UplinkIngress, Self::UplinkEgress];

    /// The value of the metrics label `hook`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
            Self::UplinkIngress => "uplink_ingress",
            Self::UplinkEgress => "uplink_egress",
        }
    }
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
