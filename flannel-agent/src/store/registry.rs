//! What a directory and etcd have in common: keys that are created exclusively, and the
//! acquisition on top of them.

use std::net::IpAddr;

use tracing::{info, warn};

use super::{Answer, Held, Request, StoreError};
use crate::{
    acquire::{Applicant, Step, step},
    lease::{Attrs, Lease},
    subnet::Subnet,
};

/// So many lost races are bad luck; more are a fault.
const TRIES: u32 = 100;

/// A lease with its version, so that it is only replaced as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Listed {
    pub(super) lease: Lease,
    pub(super) version: i64,
}

/// Keys of leases. `None` as an answer: somebody was faster.
pub(super) trait Registry: Send + Sync {
    fn name(&self) -> String;

    fn list(&self) -> Answer<'_, Vec<Listed>>;

    fn create<'a>(&'a self, subnet: Subnet, attrs: &'a Attrs) -> Answer<'a, Option<Held>>;

    /// Writes the attributes anew for another term, or without one if it had none.
    fn replace<'a>(&'a self, seen: &'a Listed, attrs: &'a Attrs) -> Answer<'a, Option<Held>>;

    fn remove<'a>(&'a self, seen: &'a Listed) -> Answer<'a, ()>;
}

/// Takes a subnet; a lost race only leads to another look.
pub(super) async fn acquire(
    registry: &dyn Registry,
    request: &Request,
) -> Result<Held, StoreError> {
    let place = registry.name();
    let pools = request
        .config
        .pools()
        .map_err(|error| StoreError::Config { place: place.clone(), error })?;
    for _ in 0..TRIES {
        let listed = registry.list().await?;
        let leases: Vec<Lease> = listed.iter().map(|listed| listed.lease.clone()).collect();
        let applicant = Applicant {
            pools,
            public_ip: request.attrs.public_ip,
            previous: request.previous,
            chance: [chance(), chance()],
        };
        let seen = |subnet| listed.iter().find(|listed| listed.lease.subnet == subnet);
        let held = match step(&applicant, &leases) {
            Step::Reuse(subnet) => match seen(subnet) {
                Some(seen) => registry.replace(seen, &request.attrs).await?,
                None => None,
            },
            Step::Remove(subnet) => {
                warn!(%subnet, "our lease does not fit the configuration any more and is removed");
                if let Some(seen) = seen(subnet) {
                    registry.remove(seen).await?;
                }
                None
            }
            Step::Create(subnet) => registry.create(subnet, &request.attrs).await?,
            Step::Exhausted => {
                let networks: Vec<String> =
                    request.config.networks().map(|network| network.to_string()).collect();
                return Err(StoreError::Exhausted { place, networks: networks.join(" and ") });
            }
        };
        if let Some(held) = held {
            return Ok(held);
        }
        info!("another node was faster; listing the leases again");
    }
    let reason = format!("{TRIES} times another node was faster");
    Err(StoreError::Failed { place, what: "take a subnet", reason })
}

/// Keeps a subnet, unless it is gone or another's: what flanneld overwrites blindly.
pub(super) async fn renew(
    registry: &dyn Registry,
    held: &Held,
    attrs: &Attrs,
) -> Result<Held, StoreError> {
    let subnet = held.subnet;
    for _ in 0..TRIES {
        let listed = registry.list().await?;
        let Some(seen) = listed.iter().find(|listed| listed.lease.subnet == subnet) else {
            return Err(StoreError::Lost { subnet });
        };
        match seen.lease.attrs.public_ip {
            Some(ip) if !seen.lease.attrs.is_same_node(attrs) => {
                return Err(StoreError::Stolen { subnet, to: IpAddr::V4(ip) });
            }
            _ => {}
        }
        if let Some(held) = registry.replace(seen, attrs).await? {
            return Ok(held);
        }
    }
    let reason = format!("it was changed {TRIES} times meanwhile");
    Err(StoreError::Failed { place: registry.name(), what: "renew the lease", reason })
}

/// What was published with a public address of ours.
pub(super) async fn published(
    registry: &dyn Registry,
    public: &[IpAddr],
) -> Result<Option<Attrs>, StoreError> {
    let listed = registry.list().await?;
    let is_own = |attrs: &Attrs| attrs.public_ip.is_some_and(|ip| public.contains(&ip.into()));
    Ok(listed.into_iter().map(|listed| listed.lease.attrs).find(is_own))
}

fn chance() -> u64 {
    // Without randomness nodes collide more often, and find out.
    getrandom::u64().unwrap_or_default()
}
