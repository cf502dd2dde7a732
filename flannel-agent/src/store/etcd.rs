//! flannel's own keys in etcd, version 3 of its interface.
//!
//! Each term is a fresh etcd lease, as flanneld makes them: grant, then put. Unlike there every
//! put asks first whether the key is as it was seen, so that a lease that meanwhile became
//! another node's is noticed instead of overwritten.

use std::{net::IpAddr, sync::Arc, time::Duration};

pub use agent_kit::etcd::Access;
use agent_kit::etcd::{Connections, EtcdError, clean};
use etcd_client::{Compare, CompareOp, KeyValue, KvClient, LeaseClient, PutOptions, Txn, TxnOp};
use tokio::sync::mpsc;

use super::{
    Answer, Entry, Event, Held, QUEUE, Request, Store, StoreError,
    registry::{self, Listed, Registry},
};
use crate::{
    clock::now,
    lease::{Attrs, Expiry, Lease},
    net_config::NetConfig,
    subnet::Subnet,
};

pub struct Etcd {
    connections: Connections,
    /// Without a slash at its end.
    prefix: String,
    term: Duration,
}

impl Etcd {
    /// Keys below `prefix`; leases that are created or renewed last for `term`.
    pub fn new(access: Access, prefix: &str, term: Duration) -> Self {
        Self { connections: Connections::new(access), prefix: clean(prefix), term }
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// What flanneld lists and watches. Without a slash at its end, so that keys are found
    /// just as there.
    fn subnets_key(&self) -> String {
        format!("{}/subnets", self.prefix)
    }

    fn key(&self, subnet: Subnet) -> String {
        format!("{}/{}", self.subnets_key(), subnet.key().unwrap_or_default())
    }

    fn failed(&self, what: &'static str) -> impl Fn(EtcdError) -> StoreError {
        let place = self.connections.name();
        move |err| StoreError::Failed { place: place.clone(), what, reason: err.to_string() }
    }

    fn entry(&self, kv: &KeyValue) -> Entry {
        let key = self.short(kv);
        let lease = match Subnet::parse_key(&key) {
            None => Err("the key is no subnet such as 10.244.1.0-24".into()),
            Some(subnet) => String::from_utf8_lossy(kv.value())
                .parse::<serde_json::Value>()
                .map_err(|err| format!("not JSON: {err}"))
                .and_then(|value| Attrs::from_value(&value).map_err(|err| err.to_string()))
                .map(|attrs| {
                    let expires = if kv.lease() == 0 { Expiry::Never } else { Expiry::Untold };
                    Lease { subnet, attrs, expires }
                }),
        };
        Entry { key, lease }
    }

    /// The key without what all have in common.
    fn short(&self, kv: &KeyValue) -> String {
        let key = String::from_utf8_lossy(kv.key());
        let rest = key.strip_prefix(&self.subnets_key()).unwrap_or(&key);
        rest.strip_prefix('/').unwrap_or(rest).to_owned()
    }

    /// Puts a value if the key still has that version, under a lease of its own.
    async fn put_if(
        &self,
        what: &'static str,
        subnet: Subnet,
        attrs: &Attrs,
        unchanged: Compare,
        forever: bool,
    ) -> Result<Option<Held>, StoreError> {
        let term = i64::try_from(self.term.as_secs()).unwrap_or(i64::MAX).max(1);
        let mut expires = Expiry::Never;
        let mut lease = None;
        if !forever {
            let grant = |mut leases: LeaseClient| async move { leases.grant(term, None).await };
            let granted = self.connections.lease(grant).await.map_err(self.failed(what))?;
            // etcd raises a term that is shorter than it can keep.
            let until = now().as_secs().saturating_add(granted.ttl().max(0).cast_unsigned());
            expires = Expiry::At(until);
            lease = Some(granted.id());
        }
        let options = lease.map(|id| PutOptions::new().with_lease(id));
        let put = TxnOp::put(self.key(subnet), attrs.to_json(), options);
        let txn = Txn::new().when([unchanged]).and_then([put]);
        let commit = |mut kv: KvClient| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        };
        let answer = self.connections.kv(commit).await;
        let succeeded = answer.as_ref().is_ok_and(etcd_client::TxnResponse::succeeded);
        if !succeeded && let Some(id) = lease {
            // It would only run out unused; whether it goes now changes nothing.
            let revoke = |mut leases: LeaseClient| async move { leases.revoke(id).await };
            let _ = self.connections.lease(revoke).await;
        }
        answer.map_err(self.failed(what))?;
        Ok(succeeded.then_some(Held { subnet, expires }))
    }
}

impl Registry for Etcd {
    fn name(&self) -> String {
        self.place()
    }

    fn list(&self) -> Answer<'_, Vec<Listed>> {
        Box::pin(async {
            let listed = self.connections.list(&self.subnets_key()).await;
            let (keys, _) = listed.map_err(self.failed("list the leases"))?;
            let listed = keys.iter().filter_map(|kv| {
                Some(Listed { lease: self.entry(kv).taken()?, version: kv.mod_revision() })
            });
            Ok(listed.collect())
        })
    }

    fn create<'a>(&'a self, subnet: Subnet, attrs: &'a Attrs) -> Answer<'a, Option<Held>> {
        let absent = Compare::version(self.key(subnet), CompareOp::Equal, 0);
        Box::pin(self.put_if("create a lease", subnet, attrs, absent, false))
    }

    fn replace<'a>(&'a self, seen: &'a Listed, attrs: &'a Attrs) -> Answer<'a, Option<Held>> {
        let subnet = seen.lease.subnet;
        let same = Compare::mod_revision(self.key(subnet), CompareOp::Equal, seen.version);
        let forever = seen.lease.expires == Expiry::Never;
        Box::pin(self.put_if("renew a lease", subnet, attrs, same, forever))
    }

    fn remove<'a>(&'a self, seen: &'a Listed) -> Answer<'a, ()> {
        Box::pin(async {
            let key = self.key(seen.lease.subnet);
            let same = Compare::mod_revision(key.clone(), CompareOp::Equal, seen.version);
            let txn = Txn::new().when([same]).and_then([TxnOp::delete(key, None)]);
            let commit = |mut kv: KvClient| {
                let txn = txn.clone();
                async move { kv.txn(txn).await }
            };
            self.connections.kv(commit).await.map_err(self.failed("remove a lease"))?;
            Ok(())
        })
    }
}

impl Store for Etcd {
    fn place(&self) -> String {
        format!("{}{}", self.connections.name(), self.prefix)
    }

    fn config(&self) -> Answer<'_, NetConfig> {
        Box::pin(async {
            let key = self.config_key();
            let place = format!("{}{key}", self.connections.name());
            let get = |mut kv: KvClient| {
                let key = key.clone();
                async move { kv.get(key, None).await }
            };
            let answer =
                self.connections.kv(get).await.map_err(self.failed("read the configuration"))?;
            let Some(kv) = answer.kvs().first() else {
                return Err(StoreError::NoConfig { place });
            };
            NetConfig::parse_with_pools(&String::from_utf8_lossy(kv.value()))
                .map_err(|error| StoreError::Config { place, error })
        })
    }

    fn published<'a>(&'a self, public: &'a [IpAddr]) -> Answer<'a, Option<Attrs>> {
        Box::pin(registry::published(self, public))
    }

    fn acquire<'a>(&'a self, request: &'a Request) -> Answer<'a, Held> {
        Box::pin(async {
            // flannel's keys have no form for IPv6 alone.
            if request.config.v4.is_none() {
                let place = format!("{}{}", self.connections.name(), self.config_key());
                let message = format!(
                    "{place}: EnableIPv4: false needs --kube-subnet-mgr; keys in etcd begin with \
                     an IPv4 subnet"
                );
                return Err(StoreError::Refused(message));
            }
            registry::acquire(self, request).await
        })
    }

    fn renew<'a>(&'a self, held: &'a Held, attrs: &'a Attrs) -> Answer<'a, Held> {
        Box::pin(registry::renew(self, held, attrs))
    }

    fn watch(self: Arc<Self>) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let (read, name) = (|kv: &KeyValue| self.entry(kv), |kv: &KeyValue| self.short(kv));
            self.connections.follow(&self.subnets_key(), &sender, read, name).await;
        });
        receiver
    }
}
