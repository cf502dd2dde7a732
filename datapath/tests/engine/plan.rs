//! Who is who in the cases.

pub(crate) use datapath::both;
use datapath::{
    address::{Be16, Family, Ipv4, Ipv6},
    backend::{Backend, backend_flags},
    counter::Hook,
    device::Device,
    flow::{Flow, FlowKey, Place},
    host::frame::Sample,
};

pub(crate) const POD_IN: Hook = Hook::PodIngress;
pub(crate) const POD_OUT: Hook = Hook::PodEgress;
pub(crate) const UP_IN: Hook = Hook::UplinkIngress;
pub(crate) const UP_OUT: Hook = Hook::UplinkEgress;

/// A row with its key.
pub(crate) type Row<F> = (FlowKey<<F as Family>::Address>, Flow<<F as Family>::Address>);

pub(crate) fn at<F: Sample>(net: u8, host: u16, port: u16) -> Place<F::Address> {
    Place::new(F::address(net, host), Be16::new(port))
}

/// A pod of this node that uses Services.
pub(crate) fn client<F: Sample>(port: u16) -> Place<F::Address> {
    at::<F>(1, 2, port)
}

/// A pod of this node that serves.
pub(crate) fn near<F: Sample>(port: u16) -> Place<F::Address> {
    at::<F>(1, 3, port)
}

/// A pod of another node that serves.
pub(crate) fn far<F: Sample>(port: u16) -> Place<F::Address> {
    at::<F>(2, 3, port)
}

pub(crate) fn vip<F: Sample>(port: u16) -> Place<F::Address> {
    at::<F>(96, 1, port)
}

/// This node, as the outside knows it.
pub(crate) fn node<F: Sample>(port: u16) -> Place<F::Address> {
    at::<F>(9, 1, port)
}

/// A client from outside of the cluster.
pub(crate) fn outside<F: Sample>(port: u16) -> Place<F::Address> {
    at::<F>(8, 7, port)
}

/// A router on the way.
pub(crate) fn router<F: Sample>() -> F::Address {
    F::address(7, 1)
}

/// A backend on this node.
pub(crate) fn local<A>(place: Place<A>) -> Backend<A> {
    Backend { addr: place.addr, port: place.port, generation: 0, flags: backend_flags::LOCAL }
}

/// A backend elsewhere.
pub(crate) fn remote<A>(place: Place<A>) -> Backend<A> {
    Backend { flags: 0, ..local(place) }
}

/// A device with an address to masquerade with.
pub(crate) fn device<F: Sample>(address: F::Address) -> Device {
    let octets = F::octets(address);
    let mut device = Device::default();
    if let Ok(octets) = octets.as_slice().try_into() {
        device.masquerade4 = Ipv4::from_bytes(octets);
    } else {
        device.masquerade6 = Ipv6::from_bytes(octets.try_into().expect("sixteen bytes"));
    }
    device
}
