//! The store in etcd, on loopback.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use flannel_agent::{
    lease::{Attrs, Expiry, Vtep},
    mac,
    net_config::NetConfig,
    store::{
        Event, Held, Request, Store, StoreError,
        etcd::{Access, Etcd as EtcdStore},
    },
    subnet::Subnet,
};
use lab::etcd::{Etcd, Tls};
use tokio::{sync::mpsc::Receiver, time::timeout};

const PREFIX: &str = "/coreos.com/network";
const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DAY: Duration = Duration::from_hours(24);

fn store(etcd: &Etcd, term: Duration) -> Arc<EtcdStore> {
    // The first endpoint is dead, as one of flanneld's two defaults is.
    let endpoints = vec!["http://127.0.0.1:1".into(), etcd.endpoint()];
    let access = Access { endpoints, ..Access::default() };
    Arc::new(EtcdStore::new(access, PREFIX, term))
}

fn attrs(ip: &str) -> Attrs {
    let mac = mac::parse("12:1c:7c:e6:f6:84").unwrap();
    Attrs {
        public_ip: ip.parse().ok(),
        backend_type: "vxlan".into(),
        backend_data: Some(Vtep { vni: 1, mac, answers: false }.to_value()),
        ..Attrs::default()
    }
}

async fn request(store: &EtcdStore, ip: &str, previous: &str) -> Request {
    Request {
        config: store.config().await.unwrap(),
        attrs: attrs(ip),
        previous: Subnet::parse_key(previous).unwrap_or_default(),
    }
}

fn configured(config: &str) -> Etcd {
    let etcd = Etcd::on_loopback(None).unwrap();
    etcd.put(&format!("{PREFIX}/config"), config).unwrap();
    etcd
}

fn key(subnet: Subnet) -> String {
    format!("{PREFIX}/subnets/{}", subnet.key().unwrap())
}

/// The etcd lease of a key; 0 if it has none.
fn lease_of(etcd: &Etcd, key: &str) -> String {
    let text = etcd.ctl(&["get", "--write-out=fields", key]).unwrap();
    let line = text.lines().find(|line| line.starts_with("\"Lease\"")).unwrap();
    line.split(' ').next_back().unwrap().to_owned()
}

async fn next(watch: &mut Receiver<Event>) -> Event {
    timeout(Duration::from_secs(20), watch.recv()).await.expect("an event").expect("a watch")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_flannels_to_the_byte() {
    let etcd = configured(NETWORK);
    let store = store(&etcd, DAY);
    let asked = request(&store, "192.168.77.11", "10.244.1.0-24").await;
    let held = store.acquire(&asked).await.unwrap();
    assert_eq!(
        etcd.get("/coreos.com/network/subnets/10.244.1.0-24").unwrap().unwrap(),
        r#"{"PublicIP":"192.168.77.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:1c:7c:e6:f6:84"}}"#
    );
    let leases = etcd.ctl(&["lease", "list"]).unwrap();
    let id = leases.lines().nth(1).unwrap();
    let text = etcd.ctl(&["lease", "timetolive", "--keys", id]).unwrap();
    assert!(text.contains("granted with TTL(86400s)"), "{text}");
    assert!(text.contains("[/coreos.com/network/subnets/10.244.1.0-24]"), "{text}");
    // Used again by address, renewed under a fresh lease, found by address.
    let asked = request(&store, "192.168.77.11", "").await;
    assert_eq!(store.acquire(&asked).await.unwrap().subnet, held.subnet);
    let before = lease_of(&etcd, &key(held.subnet));
    store.renew(&held, &asked.attrs).await.unwrap();
    assert_ne!(lease_of(&etcd, &key(held.subnet)), before);
    let own = ["192.168.77.11".parse().unwrap()];
    assert_eq!(store.published(&own).await.unwrap(), Some(asked.attrs));
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_stack_keys() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
    let etcd = configured(config);
    let store = store(&etcd, DAY);
    let wanted = "10.244.1.0-24&fd00:10:244:1::-64";
    let held = store.acquire(&request(&store, "1.2.3.4", wanted).await).await.unwrap();
    assert_eq!(held.subnet.key().unwrap(), wanted);
    assert_eq!(
        etcd.keys(&format!("{PREFIX}/subnets")).unwrap(),
        [format!("{PREFIX}/subnets/{wanted}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_stays_without_lease() {
    let etcd = configured(NETWORK);
    etcd.put(&format!("{PREFIX}/subnets/10.244.9.0-24"), r#"{"PublicIP":"1.2.3.4"}"#).unwrap();
    let store = store(&etcd, DAY);
    let asked = request(&store, "1.2.3.4", "").await;
    let held = store.acquire(&asked).await.unwrap();
    assert_eq!(
        (held.subnet.key().unwrap().as_str(), held.expires),
        ("10.244.9.0-24", Expiry::Never)
    );
    let held = store.renew(&held, &asked.attrs).await.unwrap();
    assert_eq!(held.expires, Expiry::Never);
    assert_eq!(lease_of(&etcd, &key(held.subnet)), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_one_each() {
    let config = r#"{"Network":"10.244.0.0/24","SubnetLen":29,"Backend":{"Type":"vxlan"}}"#;
    let etcd = configured(config);
    let nodes = (1..=31).map(|nth| {
        let store = store(&etcd, DAY);
        tokio::spawn(async move {
            // All want the same, and most of them lose a race or several.
            let asked = request(&store, &format!("1.2.3.{nth}"), "10.244.0.8-29").await;
            store.acquire(&asked).await.unwrap().subnet
        })
    });
    let nodes: Vec<_> = nodes.collect();
    let mut subnets = BTreeSet::new();
    for node in nodes {
        subnets.insert(node.await.unwrap());
    }
    assert_eq!(subnets.len(), 31);
    assert_eq!(etcd.keys(&format!("{PREFIX}/subnets/")).unwrap().len(), 31);
    let late = store(&etcd, DAY);
    let error = late.acquire(&request(&late, "1.2.3.99", "").await).await.unwrap_err();
    assert!(matches!(error, StoreError::Exhausted { .. }), "{error}");
    // Races that were lost leave no leases behind.
    let leases = etcd.ctl(&["lease", "list"]).unwrap();
    assert_eq!(leases.lines().count(), 1 + 31, "{leases}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_and_a_stolen_one() {
    let etcd = configured(NETWORK);
    let store = store(&etcd, DAY);
    let asked = request(&store, "1.2.3.4", "10.244.7.0-24").await;
    let held = store.acquire(&asked).await.unwrap();
    etcd.put(&key(held.subnet), r#"{"PublicIP":"9.9.9.9","PublicIPv6":null}"#).unwrap();
    let error = store.renew(&held, &asked.attrs).await.unwrap_err();
    assert!(matches!(error, StoreError::Stolen { .. }), "{error}");
    assert!(etcd.get(&key(held.subnet)).unwrap().unwrap().contains("9.9.9.9"), "overwritten");
    etcd.ctl(&["del", &key(held.subnet)]).unwrap();
    let error = store.renew(&held, &asked.attrs).await.unwrap_err();
    assert!(matches!(error, StoreError::Lost { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_tells_of_changes_expiry_outage_and_compaction() {
    let mut etcd = configured(NETWORK);
    let brief = store(&etcd, Duration::from_secs(2));
    let lasting = store(&etcd, DAY);
    let mut watch = Arc::clone(&lasting).watch();
    assert_eq!(next(&mut watch).await, Event::Listed(Vec::new()));
    // Created, then gone when its term is over.
    let held = brief.acquire(&request(&brief, "1.2.3.4", "10.244.7.0-24").await).await.unwrap();
    let began = Instant::now();
    let told = next(&mut watch).await;
    assert!(matches!(&told, Event::Put(entry) if entry.key == "10.244.7.0-24"), "{told:?}");
    assert_eq!(next(&mut watch).await, Event::Gone("10.244.7.0-24".into()));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(brief.renew(&held, &attrs("1.2.3.4")).await.unwrap_err().is_loss());
    // An outage is told once, and nothing is lost over it.
    etcd.stop();
    assert!(matches!(next(&mut watch).await, Event::Trouble(_)));
    let error = lasting
        .acquire(&Request {
            config: NetConfig::parse(NETWORK).unwrap(),
            attrs: attrs("1.2.3.5"),
            previous: Subnet::default(),
        })
        .await
        .unwrap_err();
    assert!(error.is_passing(), "{error}");
    etcd.start().unwrap();
    let held = lasting.acquire(&request(&lasting, "1.2.3.5", "10.244.8.0-24").await).await.unwrap();
    let told = until_put(&mut watch).await;
    assert_eq!(told, "10.244.8.0-24");
    // What happened meanwhile was thrown away: everything is told anew.
    etcd.stop();
    etcd.start().unwrap();
    etcd.put(&key(held.subnet), r#"{"PublicIP":"1.2.3.6","PublicIPv6":null}"#).unwrap();
    etcd.put("/else", "1").unwrap();
    etcd.compact().unwrap();
    // By an event where the watch was quicker than the compaction, else by a list.
    let lease = loop {
        match next(&mut watch).await {
            Event::Put(entry) => break entry.lease,
            Event::Listed(mut entries) => break entries.remove(0).lease,
            _ => {}
        }
    };
    assert_eq!(lease.unwrap().attrs.public_ip.unwrap().to_string(), "1.2.3.6");
}

async fn until_put(watch: &mut Receiver<Event>) -> String {
    loop {
        if let Event::Put(entry) = next(watch).await {
            return entry.key;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_etcd_behind_the_same_address_is_listed_again() {
    let mut etcd = configured(NETWORK);
    let store = store(&etcd, DAY);
    for nth in 0..20 {
        etcd.put("/else", &nth.to_string()).unwrap();
    }
    let held: Held = store.acquire(&request(&store, "1.2.3.4", "").await).await.unwrap();
    let mut watch = Arc::clone(&store).watch();
    let Event::Listed(entries) = next(&mut watch).await else { panic!("a list") };
    assert_eq!(entries[0].key, held.subnet.key().unwrap());
    etcd.stop();
    etcd.wipe().unwrap();
    etcd.start().unwrap();
    loop {
        if let Event::Listed(entries) = next(&mut watch).await {
            assert!(entries.is_empty());
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password() {
    let etcd = configured(NETWORK);
    let stranger = store(&etcd, DAY);
    for line in ["user add root:secret", "user grant-role root root", "auth enable"] {
        etcd.ctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let error = stranger.config().await.unwrap_err().to_string();
    assert!(error.contains("--etcd-username"), "{error}");
    let user = Some(("root".into(), "secret".into()));
    let access = Access { endpoints: vec![etcd.endpoint()], user, ..Access::default() };
    let store = Arc::new(EtcdStore::new(access, PREFIX, DAY));
    let held = store.acquire(&request(&store, "1.2.3.4", "").await).await.unwrap();
    let Event::Listed(entries) = next(&mut Arc::clone(&store).watch()).await else {
        panic!("a list")
    };
    assert_eq!(entries[0].key, held.subnet.key().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_the_authority_alone_and_with_a_client_certificate() {
    for wants_client in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let tls = Tls::create(directory.path(), wants_client).unwrap();
        let etcd = Etcd::on_loopback(Some(tls.clone())).unwrap();
        etcd.put(&format!("{PREFIX}/config"), NETWORK).unwrap();
        let bare = Access { endpoints: vec![etcd.endpoint()], ..Access::default() };
        let trusting = Access { ca: Some(tls.file("ca.pem")), ..bare.clone() };
        let identity = Some((tls.file("client.pem"), tls.file("client.key")));
        let known = Access { identity, ..trusting.clone() };
        let acquire = async |access: &Access| {
            let store = EtcdStore::new(access.clone(), PREFIX, DAY);
            let config = store.config().await?;
            let request = Request { config, attrs: attrs("1.2.3.4"), previous: Subnet::default() };
            store.acquire(&request).await
        };
        assert!(acquire(&bare).await.is_err(), "an unknown authority is trusted");
        assert_eq!(acquire(&trusting).await.is_ok(), !wants_client);
        acquire(&known).await.unwrap();
    }
}
