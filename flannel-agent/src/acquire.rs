//! Which subnet a node takes: its own again, the one it had before, or a free one. Decided here
//! without a store; a store only creates, replaces and removes.

use std::net::Ipv4Addr;

use ipnetwork::IpNetwork;

use crate::{
    lease::Lease,
    net_config::Pools,
    pool::Pool,
    subnet::{Family, Subnet},
};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Applicant {
    pub pools: Pools,
    /// By which a node knows its own lease: its IPv4 address, as flanneld does.
    pub public_ip: Option<Ipv4Addr>,
    /// The subnet of `subnet.env`, or the one that was held until a moment ago.
    pub previous: Subnet,
    /// Random, drawn anew for each try, for each family.
    pub chance: [u64; 2],
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Our own lease is there, and still fits.
    Reuse(Subnet),
    /// Our own lease is there and fits the configuration no more.
    Remove(Subnet),
    Create(Subnet),
    /// All are taken.
    Exhausted,
}

/// The step that a list of all leases leads to.
pub fn step(applicant: &Applicant, leases: &[Lease]) -> Step {
    let own = leases.iter().find(|lease| {
        lease.attrs.public_ip.is_some() && lease.attrs.public_ip == applicant.public_ip
    });
    if let Some(own) = own {
        let is_fit = fits(&applicant.pools, own.subnet);
        return if is_fit { Step::Reuse(own.subnet) } else { Step::Remove(own.subnet) };
    }
    let taken: Vec<IpNetwork> = leases.iter().flat_map(|lease| lease.subnet.networks()).collect();
    // Each family by itself: a network that becomes dual-stack keeps its IPv4 subnets.
    let take = |pool: Option<Pool>, previous: Option<IpNetwork>, chance| match pool {
        Some(pool) => {
            let previous = previous.filter(|&previous| pool.is_free(previous, &taken));
            previous.or_else(|| pool.pick(&taken, chance)).map(Some)
        }
        None => Some(None),
    };
    let Applicant { pools, previous, chance, .. } = applicant;
    let v4 = take(pools.v4, previous.of(Family::V4), chance[0]);
    let v6 = take(pools.v6, previous.of(Family::V6), chance[1]);
    match (v4, v6) {
        (Some(v4), Some(v6)) => Step::Create(Subnet::from_networks(v4.into_iter().chain(v6))),
        _ => Step::Exhausted,
    }
}

/// Whether a subnet has just the families that are on, each out of its pool.
pub fn fits(pools: &Pools, subnet: Subnet) -> bool {
    let family = |pool: Option<Pool>, subnet: Option<IpNetwork>| match (pool, subnet) {
        (Some(pool), Some(subnet)) => pool.fits(subnet),
        (None, None) => true,
        _ => false,
    };
    family(pools.v4, subnet.v4.map(IpNetwork::V4)) && family(pools.v6, subnet.v6.map(IpNetwork::V6))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        lease::{Attrs, Expiry},
        net_config::NetConfig,
    };

    fn pools(text: &str) -> Pools {
        NetConfig::parse(text).unwrap().pools().unwrap()
    }

    const SINGLE: &str = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
    const DUAL: &str = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;

    fn subnet(key: &str) -> Subnet {
        Subnet::parse_key(key).unwrap()
    }

    fn lease(key: &str, ip: &str) -> Lease {
        let attrs = Attrs { public_ip: ip.parse().ok(), ..Attrs::default() };
        Lease { subnet: subnet(key), attrs, expires: Expiry::Untold }
    }

    fn applicant(config: &str, previous: &str) -> Applicant {
        Applicant {
            pools: pools(config),
            public_ip: "1.2.3.4".parse().ok(),
            previous: Subnet::parse_key(previous).unwrap_or_default(),
            chance: [3, 5],
        }
    }

    #[test]
    fn our_own_lease_is_used_again() {
        let leases = [lease("10.3.9.0-24", "1.2.3.5"), lease("10.3.7.0-24", "1.2.3.4")];
        // Rather than the previous one of subnet.env.
        assert_eq!(
            step(&applicant(SINGLE, "10.3.8.0-24"), &leases),
            Step::Reuse(subnet("10.3.7.0-24"))
        );
    }

    #[test]
    fn our_own_lease_that_does_not_fit_goes() {
        for key in ["10.4.7.0-24", "10.3.7.0-25", "10.3.0.0-24", "10.3.7.0-24&fc00:0:0:1::-64"] {
            let leases = [lease(key, "1.2.3.4")];
            assert_eq!(step(&applicant(SINGLE, ""), &leases), Step::Remove(subnet(key)));
        }
        let leases = [lease("10.3.7.0-24", "1.2.3.4")];
        assert_eq!(step(&applicant(DUAL, ""), &leases), Step::Remove(subnet("10.3.7.0-24")));
    }

    #[test]
    fn the_previous_subnet_if_it_is_free_and_fits() {
        assert_eq!(
            step(&applicant(SINGLE, "10.3.7.0-24"), &[]),
            Step::Create(subnet("10.3.7.0-24"))
        );
        let dual = "10.3.7.0-24&fc00:0:0:9::-64";
        assert_eq!(step(&applicant(DUAL, dual), &[]), Step::Create(subnet(dual)));
        // Taken, even if only by a part of it.
        let leases = [lease("10.3.7.128-25", "1.2.3.5")];
        let picked = step(&applicant(SINGLE, "10.3.7.0-24"), &leases);
        assert_eq!(picked, Step::Create(subnet("10.3.4.0-24")));
        // Out of range.
        let picked = step(&applicant(SINGLE, "10.9.7.0-24"), &[]);
        assert_eq!(picked, Step::Create(subnet("10.3.4.0-24")));
    }

    #[test]
    fn a_network_that_becomes_dual_stack_keeps_its_subnets() {
        let picked = step(&applicant(DUAL, "10.3.7.0-24"), &[]);
        assert_eq!(picked, Step::Create(subnet("10.3.7.0-24&fc00:0:0:6::-64")));
        let picked = step(&applicant(SINGLE, "10.3.7.0-24&fc00:0:0:9::-64"), &[]);
        assert_eq!(picked, Step::Create(subnet("10.3.7.0-24")));
    }

    #[test]
    fn families_are_picked_apart() {
        let leases = [lease("10.3.1.0-24&fc00:0:0:6::-64", "1.2.3.5")];
        let picked = step(&applicant(DUAL, ""), &leases);
        assert_eq!(picked, Step::Create(subnet("10.3.5.0-24&fc00:0:0:7::-64")));
    }

    #[test]
    fn nothing_is_left() {
        let small = r#"{"Network":"10.3.0.0/24","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#;
        let leases = [lease("10.3.0.64-26", "1.1.1.1"), lease("10.3.0.128-25", "1.1.1.2")];
        assert_eq!(step(&applicant(small, ""), &leases), Step::Exhausted);
    }

    proptest! {
        #[test]
        fn what_is_created_is_free_and_fits(chance: [u64; 2], taken in prop::collection::vec(0_u8..=255, 0..60)) {
            let leases: Vec<Lease> = taken.iter()
                .map(|nth| lease(&format!("10.3.{nth}.0-24"), "9.9.9.9")).collect();
            let applicant = Applicant { chance, ..applicant(SINGLE, "") };
            let Step::Create(created) = step(&applicant, &leases) else { panic!("there is room") };
            prop_assert!(fits(&applicant.pools, created));
            prop_assert!(!leases.iter().any(|lease| lease.subnet.overlaps(created)));
        }
    }
}
