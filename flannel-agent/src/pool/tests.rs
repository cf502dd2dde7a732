//! The arithmetic against flannel's own examples, and against a plain walk.

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn defaults(network: &str) -> Pool {
    Pool::new(net(network), None, None, None).unwrap()
}

#[test]
fn defaults_skip_the_first_subnet() {
    let pool = defaults("10.3.0.0/16");
    assert_eq!(
        (pool.subnet_len, pool.min.to_string(), pool.max.to_string()),
        (24, "10.3.1.0".into(), "10.3.255.0".into())
    );
    let pool = defaults("fc00::/48");
    assert_eq!(
        (pool.subnet_len, pool.min.to_string(), pool.max.to_string()),
        (64, "fc00:0:0:1::".into(), "fc00:0:0:ffff::".into())
    );
    assert_eq!(defaults("10.0.0.0/22").subnet_len, 24);
    assert_eq!(defaults("10.0.0.0/23").subnet_len, 25);
    assert_eq!(defaults("10.0.0.0/28").subnet_len, 30);
    assert_eq!(defaults("fd00::/62").subnet_len, 64);
    assert_eq!(defaults("fd00::/63").subnet_len, 65);
    assert_eq!(defaults("fd00::/124").subnet_len, 126);
    assert_eq!(defaults("255.255.0.0/16").max.to_string(), "255.255.255.0");
}

#[test]
fn every_check_names_its_field() {
    type Bounds = (Option<u32>, Option<IpAddr>, Option<IpAddr>);
    let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let cases: [(&str, Bounds, &str); 11] = [
        ("10.0.0.0/16", (Some(31), None, None), "SubnetLen"),
        ("10.0.0.0/16", (Some(17), None, None), "SubnetLen"),
        ("10.0.0.0/29", (None, None, None), "Network"),
        ("10.0.0.0/16", (None, ip("10.1.0.0"), None), "SubnetMin"),
        ("10.0.0.0/16", (None, ip("10.0.1.4"), None), "SubnetMin"),
        ("10.0.0.0/16", (None, None, ip("10.1.0.0")), "SubnetMax"),
        ("10.0.0.0/16", (None, None, ip("10.0.255.1")), "SubnetMax"),
        ("10.0.0.0/16", (None, ip("10.0.9.0"), ip("10.0.8.0")), "SubnetMin"),
        ("fd00::/48", (Some(127), None, None), "IPv6SubnetLen"),
        ("fd00::/125", (None, None, None), "IPv6Network"),
        ("fd00::/48", (None, ip("fd01::"), None), "IPv6SubnetMin"),
    ];
    for (network, (len, min, max), field) in cases {
        assert_eq!(Pool::new(net(network), len, min, max).unwrap_err().field, field, "{network}");
    }
}

#[test]
fn what_is_taken_is_not_picked() {
    let pool = Pool::new(net("10.244.0.0/22"), None, None, None).unwrap();
    assert_eq!(pool.free(&[]), [net("10.244.1.0/24"), net("10.244.2.0/24"), net("10.244.3.0/24")]);
    // A smaller and a larger one than ours count too.
    let taken = [net("10.244.1.128/25"), net("10.244.2.0/23")];
    assert_eq!(pool.free(&taken), []);
    assert_eq!(pool.pick(&taken, 7), None);
    assert!(!pool.is_free(net("10.244.2.0/24"), &taken));
    assert!(!pool.fits(net("10.244.0.0/24")), "before SubnetMin");
    assert!(!pool.fits(net("10.244.1.0/25")), "of another length");
}

proptest! {
    #[test]
    fn free_is_what_a_plain_walk_finds(
        taken in prop::collection::vec((0_u32..1024, 22_u8..=30), 0..40),
        len in 26_u8..=30,
    ) {
        let pool = Pool::new(net("10.0.0.0/22"), Some(len.into()), None, None).unwrap();
        let taken: Vec<IpNetwork> = taken.into_iter().map(|(offset, len)| {
            crate::subnet::masked(IpNetwork::new(
                address(Family::V4, u128::from(0x0a00_0000 + offset)), len).unwrap())
        }).collect();
        let size = 1_u128 << (32 - len);
        let mut walk = Vec::new();
        let mut at = number(pool.min);
        while at <= number(pool.max) && walk.len() < CANDIDATES {
            let subnet = IpNetwork::new(address(Family::V4, at), len).unwrap();
            if pool.is_free(subnet, &taken) {
                walk.push(subnet);
            }
            at += size;
        }
        prop_assert_eq!(pool.free(&taken), walk);
    }

    #[test]
    fn every_pick_fits(chance: u64, prefix in 8_u8..=28) {
        let network = IpNetwork::new("10.0.0.0".parse().unwrap(), prefix).unwrap();
        let pool = Pool::new(crate::subnet::masked(network), None, None, None).unwrap();
        let picked = pool.pick(&[], chance).unwrap();
        prop_assert!(pool.fits(picked));
    }
}
