//! What is measured of traffic: kinds of slices, and how their times are told.

use std::net::{Ipv4Addr, SocketAddrV4};

use lab::bench::{CONNECTIONS_A_PIECE, DATAGRAMS_A_PIECE, Order, port};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Connections,
    Latency,
    Bulk,
    Datagrams,
}

// One slice, some tens of milliseconds.
const CONNECTIONS: u32 = 400;
const ROUND_TRIPS: u32 = 1_500;
const PARTS: u32 = 12;
const PART: u32 = 4 << 20;
const FLOODS: u32 = 8;
const FLOOD: u32 = 1_024;

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connections => "new connections per second",
            Self::Latency => "round trip time",
            Self::Bulk => "bulk throughput",
            Self::Datagrams => "64-byte UDP datagrams per second",
        }
    }

    pub(super) fn port(self) -> u16 {
        match self {
            Self::Connections => port::CONNECT,
            Self::Latency => port::LATENCY,
            Self::Bulk => port::BULK,
            Self::Datagrams => port::FLOOD,
        }
    }

    /// One slice to an address.
    pub(super) fn order(self, address: Ipv4Addr) -> Order {
        self.order_to(SocketAddrV4::new(address, self.port()))
    }

    /// One slice to an address and a port.
    pub(super) fn order_to(self, to: SocketAddrV4) -> Order {
        match self {
            Self::Connections => Order::Connect { to, count: CONNECTIONS },
            Self::Latency => Order::Latency { to, count: ROUND_TRIPS },
            Self::Bulk => Order::Bulk { to, parts: PARTS, bytes: PART },
            Self::Datagrams => Order::Flood { to, parts: FLOODS, datagrams: FLOOD },
        }
    }

    /// Connections that a slice opens.
    pub(super) fn connections(self) -> u64 {
        match self {
            Self::Connections => CONNECTIONS.into(),
            Self::Latency | Self::Bulk => 1,
            Self::Datagrams => 0,
        }
    }

    /// What is counted in a slice: connections, round trips, mebibytes, datagrams.
    pub(super) fn units(self) -> f64 {
        match self {
            Self::Connections => CONNECTIONS.into(),
            Self::Latency => ROUND_TRIPS.into(),
            Self::Bulk => f64::from(PARTS) * f64::from(PART) / f64::from(1 << 20),
            Self::Datagrams => f64::from(FLOODS) * f64::from(FLOOD),
        }
    }

    /// One of what is counted.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Connections => "a connection",
            Self::Latency => "a round trip",
            Self::Bulk => "a MiB",
            Self::Datagrams => "a datagram",
        }
    }

    /// A ratio of times as that of what is reported, both as logarithms: more is better, but for
    /// round trips.
    pub(super) fn log(self, log_of_times: f64) -> f64 {
        if self == Self::Latency { log_of_times } else { -log_of_times }
    }

    /// A piece's time as what is reported, in [`Self::absolute_unit`].
    pub(super) fn value(self, seconds: f64) -> f64 {
        match self {
            Self::Connections => f64::from(CONNECTIONS_A_PIECE) / seconds,
            Self::Latency => seconds * 1e6,
            Self::Bulk => f64::from(PART) / seconds,
            Self::Datagrams => f64::from(DATAGRAMS_A_PIECE) / seconds,
        }
    }

    pub(super) fn absolute_unit(self) -> &'static str {
        match self {
            Self::Connections => "connections per second",
            Self::Latency => "microseconds",
            Self::Bulk => "bytes per second",
            Self::Datagrams => "datagrams per second",
        }
    }

    /// A [`Self::value`] for people.
    pub(super) fn absolute(self, value: f64) -> String {
        match self {
            Self::Connections | Self::Datagrams => format!("{value:.0}/s"),
            Self::Latency => format!("{value:.2} µs"),
            Self::Bulk => format!("{:.2} GB/s", value / 1e9),
        }
    }
}
