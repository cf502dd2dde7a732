//! What subnets are taken out of: bounds, alignment, and which are free. One arithmetic for
//! both families, on addresses as numbers.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::subnet::{Family, address, number, overlap};

/// Of so many free subnets one is picked by chance, as flanneld does, so that nodes that start
/// together seldom want the same.
const CANDIDATES: usize = 100;

/// Subnets of one length between two bounds, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    pub network: IpNetwork,
    pub subnet_len: u8,
    pub min: IpAddr,
    pub max: IpAddr,
}

/// What a family's figures must obey.
struct Rules {
    /// Names of the fields, for messages.
    network: &'static str,
    subnet_len: &'static str,
    min: &'static str,
    max: &'static str,
    most_len: u8,
    most_prefix: u8,
    /// Networks at most this long get subnets of `usual_len`.
    roomy_prefix: u8,
    usual_len: u8,
}

const RULES4: Rules = Rules {
    network: "Network",
    subnet_len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    most_len: 30,
    most_prefix: 28,
    roomy_prefix: 22,
    usual_len: 24,
};

const RULES6: Rules = Rules {
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    most_len: 126,
    most_prefix: 124,
    roomy_prefix: 62,
    usual_len: 64,
};

/// What of the configuration is wrong; names the field and says what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PoolError {
    pub field: &'static str,
    pub message: String,
}

impl Pool {
    /// Checks and completes what the configuration says of one family.
    pub fn new(
        network: IpNetwork,
        subnet_len: Option<u32>,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
    ) -> Result<Self, PoolError> {
        let family = Family::of(network.network());
        let rules = match family {
            Family::V4 => &RULES4,
            Family::V6 => &RULES6,
        };
        let subnet_len = rules.subnet_len(network, subnet_len)?;
        let size = 1_u128 << (family.bits() - subnet_len);
        let first = number(network.network());
        // The last address, then the subnet it lies in: one past it may not fit the type.
        let last = first | low_bits(family.bits() - network.prefix());
        let min = min.unwrap_or_else(|| address(family, first + size));
        let max = max.unwrap_or_else(|| address(family, last - (size - 1)));
        let pool = Self { network, subnet_len, min, max };
        for (field, bound) in [(rules.min, min), (rules.max, max)] {
            pool.check_bound(field, bound, size)?;
        }
        if number(min) > number(max) {
            let message = format!("{min} lies behind {} {max}, so there is no subnet", rules.max);
            return Err(PoolError { field: rules.min, message });
        }
        Ok(pool)
    }

    fn check_bound(&self, field: &'static str, bound: IpAddr, size: u128) -> Result<(), PoolError> {
        let wrong = |message| Err(PoolError { field, message });
        if !self.network.contains(bound) {
            return wrong(format!("{bound} lies outside {}", self.network));
        }
        if !number(bound).is_multiple_of(size) {
            return wrong(format!("{bound} is not the first address of a /{}", self.subnet_len));
        }
        Ok(())
    }

    fn family(&self) -> Family {
        Family::of(self.min)
    }

    /// Whether a subnet could have come out of this pool.
    pub fn fits(&self, subnet: IpNetwork) -> bool {
        Family::of(subnet.network()) == self.family()
            && subnet.prefix() == self.subnet_len
            && (number(self.min)..=number(self.max)).contains(&number(subnet.network()))
    }

    /// The first free subnets from the lower bound on.
    pub fn free(&self, taken: &[IpNetwork]) -> Vec<IpNetwork> {
        let family = self.family();
        let mut taken: Vec<(u128, u128)> = taken
            .iter()
            .filter(|network| Family::of(network.network()) == family)
            .map(|network| {
                let first = number(network.network());
                (first, first | low_bits(family.bits() - network.prefix()))
            })
            .collect();
        taken.sort_unstable();
        let size = 1_u128 << (family.bits() - self.subnet_len);
        let (mut next, max) = (number(self.min), number(self.max));
        let mut free = Vec::new();
        let mut taken = taken.into_iter().peekable();
        while next <= max && free.len() < CANDIDATES {
            // Jumps over what is taken, so that a large lease costs no more than a small one.
            while taken.next_if(|&(_, last)| last < next).is_some() {}
            match taken.peek() {
                Some(&(first, last)) if first < next + size => {
                    next = match (last | (size - 1)).checked_add(1) {
                        Some(next) => next,
                        None => break,
                    };
                    continue;
                }
                _ => {}
            }
            free.extend(IpNetwork::new(address(family, next), self.subnet_len));
            match next.checked_add(size) {
                Some(after) => next = after,
                None => break,
            }
        }
        free
    }

    /// A free subnet, chosen by a number that chance gave.
    pub fn pick(&self, taken: &[IpNetwork], chance: u64) -> Option<IpNetwork> {
        let free = self.free(taken);
        let count = u64::try_from(free.len()).ok().filter(|&count| count > 0)?;
        free.get((chance % count) as usize).copied()
    }

    /// Whether a subnet fits, and nobody has it.
    pub fn is_free(&self, subnet: IpNetwork, taken: &[IpNetwork]) -> bool {
        self.fits(subnet) && !taken.iter().any(|&other| overlap(subnet, other))
    }
}

impl Rules {
    fn subnet_len(&self, network: IpNetwork, wanted: Option<u32>) -> Result<u8, PoolError> {
        let prefix = network.prefix();
        let wrong = |field, message| Err(PoolError { field, message });
        match wanted.filter(|&len| len > 0) {
            Some(len) if len > u32::from(self.most_len) => {
                wrong(self.subnet_len, format!("{len} is more than {}", self.most_len))
            }
            Some(len) if len < u32::from(prefix) + 2 => {
                let least = u32::from(prefix) + 2;
                let message = format!(
                    "{len} leaves no room for four subnets in {network}; use {least} or more"
                );
                wrong(self.subnet_len, message)
            }
            Some(len) => Ok(len as u8),
            None if prefix > self.most_prefix => {
                let most = self.most_prefix;
                wrong(self.network, format!("{network} is too small; a /{most} is the smallest"))
            }
            None if prefix <= self.roomy_prefix => Ok(self.usual_len),
            None => Ok(prefix + 2),
        }
    }
}

/// A number with that many of its lowest bits set.
fn low_bits(count: u8) -> u128 {
    u128::MAX.checked_shr(128 - u32::from(count)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
