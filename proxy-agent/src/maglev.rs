//! Maglev's table: which backend each number stands for, so that nodes that know the same backends
//! agree, all have their share, and few numbers come to stand for another when one comes or goes
//! (Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, §3.4).

use std::net::IpAddr;

use datapath::{
    address::{Ipv4, Ipv6},
    hash,
};

use crate::desired::DesiredBackend;

/// Sizes of tables: primes, each about twice the one before it, so that most changes leave the
/// size as it is. With another size nearly every number stands for another backend.
pub const SIZES: [usize; 9] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 64_997];

/// Numbers for each backend, at least, as long as there is such a size.
const PER_BACKEND: usize = 100;

/// The table, as places in `backends`, which hold one at least, each once. They take turns as
/// `turns` says, over and over.
#[must_use]
pub fn table(backends: &[DesiredBackend], turns: &[usize]) -> Vec<usize> {
    let size = size(backends.len());
    let mut wishes: Vec<Wishes> =
        backends.iter().map(|backend| Wishes::of(backend, size)).collect();
    let mut table = vec![usize::MAX; size];
    for &nth in turns.iter().cycle().take(size) {
        // There is a free number, and wishes go through all of them.
        while table[wishes[nth].next] != usize::MAX {
            wishes[nth].pass(size);
        }
        table[wishes[nth].next] = nth;
    }
    table
}

fn size(backends: usize) -> usize {
    let is_enough = |size: &&usize| **size >= PER_BACKEND * backends;
    *SIZES.iter().find(is_enough).unwrap_or(&SIZES[SIZES.len() - 1])
}

/// The numbers that a backend would like to have, one after the other: all of them, because the
/// step has no divisor in common with a prime.
struct Wishes {
    next: usize,
    step: usize,
}

impl Wishes {
    fn of(backend: &DesiredBackend, size: usize) -> Self {
        let address = match backend.address {
            IpAddr::V4(address) => hash::address(Ipv4::from(address)),
            IpAddr::V6(address) => hash::address(Ipv6::from(address)),
        };
        let first = hash::mix(address ^ u32::from(backend.port));
        let second = hash::mix(!first);
        Self { next: first as usize % size, step: second as usize % (size - 1) + 1 }
    }

    fn pass(&mut self, size: usize) {
        self.next = (self.next + self.step) % size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(hosts: impl IntoIterator<Item = u16>) -> Vec<DesiredBackend> {
        let backend = |host: u16| DesiredBackend {
            address: [10, 1, (host >> 8) as u8, host as u8].into(),
            port: 80,
            local: false,
        };
        hosts.into_iter().map(backend).collect()
    }

    /// With each as heavy as any other.
    fn even(backends: &[DesiredBackend]) -> Vec<DesiredBackend> {
        let turns: Vec<usize> = (0..backends.len()).collect();
        table(backends, &turns).into_iter().map(|nth| backends[nth]).collect()
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!((2..size).take_while(|n| n * n <= size).all(|n| size % n != 0), "{size}");
        }
        assert_eq!(
            [1, 2, 3, 10, 100, 655, 5_000].map(size),
            [251, 251, 509, 1021, 16_381, 64_997, 64_997]
        );
    }

    #[test]
    fn all_have_the_same_share() {
        for count in [1, 2, 3, 10, 100, 700] {
            let backends = backends(0..count);
            let table = even(&backends);
            let shares =
                backends.iter().map(|backend| table.iter().filter(|b| *b == backend).count());
            let (least, most) = (shares.clone().min().unwrap(), shares.max().unwrap());
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
    }

    /// Of two nodes, one of which learned of the backends in another order: they are sorted.
    #[test]
    fn the_same_backends_give_the_same_table() {
        let (some, same) = (backends(0..50), backends(0..50));
        assert_eq!(even(&some), even(&same));
    }

    /// The paper's figure 12: with numbers a hundred times as many as backends some 2 % of those
    /// change that need not.
    #[test]
    fn when_one_leaves_few_others_are_moved() {
        for count in [10, 50, 100, 163] {
            let before = even(&backends(0..count));
            let after = even(&backends((0..count).filter(|host| *host != count / 2)));
            assert_eq!(before.len(), after.len());
            let gone = backends([count / 2])[0];
            let moved =
                before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count();
            assert!(25 * moved < before.len(), "of {count}: {moved} of {} moved", before.len());
            // Each that the one had goes to somebody.
            assert!(!after.contains(&gone));
        }
    }

    #[test]
    fn when_one_comes_it_takes_from_all_and_moves_few_others() {
        let before = even(&backends(0..100));
        let after = even(&backends(0..101));
        let new = backends([100])[0];
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b && **b != new).count();
        assert!(25 * moved < before.len(), "{moved} of {}", before.len());
    }
}
