//! The engine's view of the tables: maps in the kernel, hash maps in tests.

use crate::{
    affinity::{Affinity, AffinityKey, Client},
    algorithm,
    backend::Backend,
    counter::{Hook, Reason},
    device::Device,
    direct, egress,
    flow::{Flow, FlowKey, Parties, Place},
    fragment::{FragmentKey, Ports},
    frontend::{AddressUse, Frontend, FrontendKey},
    header::Network,
    icmp,
    ingress::{self, Look},
    masquerade::{self, Take},
    packet::Packet,
    select::{self, Choice, Origin},
    service::{ServicePolicy, SetRef},
    settings::Settings,
    socket::{Peer, PeerKey},
    source_rate, syn, track,
};

/// Which of a Service's sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Cluster,
    Local,
}

/// Where a flow's rows are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// `PENDING`: not yet answered, may be evicted.
    Pending,
    /// `FLOWS`: answered, never evicted.
    Answered,
}

/// How a row begins.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// [`crate::flow::role`].
    pub role: u8,
    pub service: u32,
    /// Bits of [`crate::flow::flow_flags`].
    pub flags: u16,
    /// In units of [`crate::flow::TICK_NS`].
    pub now: u32,
    /// Whether to write over a row that stands there.
    pub replace: bool,
}

/// Why a row was not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepError {
    Missing,
    Full,
}

/// Access to the tables of flows of one family, and to what their life hangs on. References into
/// tables may be changed by other processors at any time; each field stands for itself.
pub trait FlowTables<F: Network> {
    /// True if a masqueraded flow is one by itself, of the two rows that masquerade it; false if
    /// these are beside the two of a Service's flow.
    const BARE_MASQUERADE: bool;

    /// Monotonic clock in units of [`crate::flow::TICK_NS`].
    fn now(&mut self) -> u32;
    fn random(&mut self) -> u32;

    fn flow(&mut self, store: Store, key: &FlowKey<F::Address>) -> Option<&mut Flow<F::Address>>;
    /// The same wherever the row is, and where that is. Here so that programs can do it with as
    /// few look-ups as there are tables: the compiler, for the sake of safety, asks for one more.
    #[inline(always)]
    fn find(&mut self, key: &FlowKey<F::Address>) -> Option<(&mut Flow<F::Address>, Store)> {
        let store = match self.flow(Store::Answered, key) {
            Some(_) => Store::Answered,
            None => Store::Pending,
        };
        self.flow(store, key).map(|row| (row, store))
    }
    /// The parties of the flow that rows are being written for: kept here and not with the
    /// caller, because a program has little stack.
    fn parties(&mut self) -> &mut Parties<F::Address>;
    /// Puts the row of `opening.role` for `parties` into `PENDING`; false if `opening.replace`
    /// is not set and there is one already.
    fn begin(&mut self, opening: Opening) -> bool;
    /// Moves the row of a role for `parties` from `PENDING` to `FLOWS`. One that stands in
    /// `FLOWS` already, from when there was no room for the others, knows more and stays.
    fn keep(&mut self, role: u8) -> Result<(), KeepError>;
    /// Removes a row from both.
    fn forget(&mut self, key: &FlowKey<F::Address>);
    /// Removes some expired rows from `FLOWS`; true if there is room now.
    fn reclaim(&mut self) -> bool;
    /// Notes that packets on a way, as [`crate::hash::way`] has it, may have rows at egress, or, of
    /// replies to a masqueraded flow, at ingress.
    fn mark(&mut self, hash: u32);
    fn is_marked(&mut self, hash: u32) -> bool;

    fn fragment(&mut self, key: &FragmentKey<F::Address>) -> Option<Ports>;
    fn remember_fragment(&mut self, key: &FragmentKey<F::Address>, ports: Ports);

    /// What the device that the packet is on is called to the masquerade.
    fn device(&mut self) -> Option<Device>;
    /// First and last source port to masquerade with, in this machine's byte order.
    fn nat_ports(&mut self) -> (u16, u16);
    /// True if a socket of this node would take a packet with this tuple.
    fn socket_holds(&mut self, key: &FlowKey<F::Address>) -> bool;

    fn count_drop(&mut self, hook: Hook, reason: Reason);
    fn count_packet(&mut self, service: u32, bytes: u32);

    /// [`track::settle`]. This and those below are steps that programs have as global functions:
    /// the verifier follows such a function once, and any other again at each call, with all that
    /// is known there.
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    fn settle<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> Result<(), KeepError>
    where
        Self: Sized,
    {
        track::settle::<F, Self, ROLE>(self, key)
    }

    /// [`track::forget_finished`] for an heir.
    #[inline(always)]
    fn succeed<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> bool
    where
        Self: Sized,
    {
        track::forget_finished::<F, Self, ROLE>(self, key, 0)
    }

    /// [`masquerade::claim`].
    #[inline(always)]
    fn claim(&mut self, service: u32, take: Take) -> bool
    where
        Self: Sized,
    {
        masquerade::claim::<F, Self>(self, service, take)
    }
}

/// The tables of flows, and those of Services.
pub trait Tables<F: Network>: FlowTables<F> {
    fn settings(&mut self) -> Settings;

    fn address_use(&mut self, address: F::Address) -> Option<AddressUse>;
    fn frontend(&mut self, key: &FrontendKey<F::Address>) -> Option<Frontend>;
    /// Read as one word; all zero if there is no such row.
    fn policy(&mut self, service: u32) -> ServicePolicy;
    /// Read as one word.
    fn set(&mut self, service: u32, scope: Scope) -> Option<SetRef>;
    fn backend(&mut self, index: u32) -> Option<Backend<F::Address>>;

    /// True if cluster IPs are given out of a network that the address is in.
    fn is_service_network(&mut self, address: F::Address) -> bool;
    /// True if a range of the Service's has the source.
    fn is_admitted(&mut self, service: u32, source: F::Address) -> bool;

    /// What is known of an unconnected socket.
    fn peer(&mut self, key: &PeerKey<F::Address>) -> Option<Peer<F::Address>>;
    fn remember_peer(&mut self, key: &PeerKey<F::Address>, peer: &Peer<F::Address>);

    /// What is known of a client of a Service.
    fn affinity(&mut self, key: &AffinityKey<F::Address>) -> Option<Affinity<F::Address>>;
    fn remember_affinity(&mut self, key: &AffinityKey<F::Address>, row: &Affinity<F::Address>);

    /// The slot of the set that has the backend at a place.
    #[inline(always)]
    fn find_backend(&mut self, set: SetRef, place: Place<F::Address>) -> Option<u32> {
        (set.block..set.block + u32::from(set.count))
            .find(|&slot| self.backend(slot).is_some_and(|backend| backend.is(place, set)))
    }

    /// Has a source outside begin another flow, as [`crate::source_rate::charge`] has it; false if it
    /// may not.
    fn charge(&mut self, origin: u64, interval: u32) -> bool;

    /// How many choices of a Service's were made by turns before this one.
    fn turn(&mut self, service: u32) -> u32;
    /// The row of `LOADS` for a slot; zero if there is none.
    fn load(&mut self, slot: u32) -> u32;
    /// Adds a connection to it, if there is one.
    fn add_load(&mut self, slot: u32);

    fn count_connection(&mut self, service: u32);

    /// True if the node that has the pod answers clients outside itself.
    fn answers(&mut self, pod: F::Address) -> bool;
    /// This node's address in the overlay; all zero if there is none.
    fn underlay(&mut self) -> F::Address;
    /// True if the packet came out of a tunnel from the node that has the address, its destination.
    fn is_senders(&mut self, destination: F::Address) -> bool;

    /// [`algorithm::choose`]. This and those below are global functions of programs, like the last
    /// of [`FlowTables`].
    #[inline(always)]
    fn choose(&mut self, service: u32, client: Client, set: SetRef, entropy: u32) -> u32
    where
        Self: Sized,
    {
        algorithm::choose::<F, Self>(self, service, client, set, entropy)
    }

    /// [`select::select_for_sender`].
    #[inline(always)]
    fn select_for_sender(&mut self, service: u32, kind: u8, origin: Origin) -> Choice<u32>
    where
        Self: Sized,
    {
        select::select_for_sender::<F, Self>(self, service, kind, origin)
    }

    /// [`direct::applies`].
    #[inline(always)]
    fn is_direct(&mut self, service: u32, kind: u8) -> bool
    where
        Self: Sized,
    {
        direct::applies::<F, Self>(self, service, kind)
    }

    /// [`source_rate::refuses`].
    #[inline(always)]
    fn is_over_rate(&mut self) -> bool
    where
        Self: Sized,
    {
        source_rate::refuses::<F, Self>(self)
    }

    /// [`track::open`].
    #[inline(always)]
    fn open(&mut self, service: u32, flags: u16) -> bool
    where
        Self: Sized,
    {
        track::open::<F, Self>(self, service, flags)
    }

    /// [`syn::open`].
    #[inline(always)]
    fn open_lone(&mut self, service: u32, length: u32) -> bool
    where
        Self: Sized,
    {
        syn::open::<F, Self>(self, service, length)
    }

    /// [`ingress::look`].
    #[inline(always)]
    fn look_in<P: Packet>(&mut self, packet: &mut P, look: Look) -> ingress::Step
    where
        Self: Sized,
    {
        ingress::look::<F, P, Self>(packet, self, look)
    }

    /// [`egress::look`].
    #[inline(always)]
    fn look_out<P: Packet>(&mut self, packet: &mut P, look: Look) -> egress::Step
    where
        Self: Sized,
    {
        egress::look::<F, P, Self>(packet, self, look)
    }

    /// [`egress::look_direct`].
    #[inline(always)]
    fn look_direct<P: Packet>(&mut self, packet: &mut P) -> egress::Step
    where
        Self: Sized,
    {
        egress::look_direct::<F, P, Self>(packet, self)
    }

    /// [`icmp::egress_direct`].
    #[inline(always)]
    fn restores_quote<P: Packet>(&mut self, packet: &mut P) -> bool
    where
        Self: Sized,
    {
        icmp::egress_direct::<F, P, Self>(packet, self)
    }
}
