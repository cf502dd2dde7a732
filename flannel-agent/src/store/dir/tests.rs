//! Leases in a directory of their own.

use std::{collections::BTreeSet, time::Instant};

use super::*;

const NETWORK: &str = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;

struct Bed {
    dir: tempfile::TempDir,
    term: Duration,
}

impl Bed {
    fn new(config: &str, term: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG), config).unwrap();
        Self { dir, term }
    }

    fn store(&self) -> Dir {
        Dir::new(self.dir.path().into(), self.term)
    }

    fn request(&self, ip: &str, previous: &str) -> Request {
        Request {
            config: self.store().read_config().unwrap(),
            attrs: Attrs { public_ip: ip.parse().ok(), ..Attrs::default() },
            previous: Subnet::parse_key(previous).unwrap_or_default(),
        }
    }
}

const DAY: Duration = Duration::from_hours(24);

#[tokio::test]
async fn a_subnet_is_taken_kept_and_found_again() {
    let bed = Bed::new(NETWORK, DAY);
    let request = bed.request("1.2.3.4", "10.3.7.0-24");
    let held = bed.store().acquire(&request).await.unwrap();
    assert_eq!(held.subnet.to_string(), "10.3.7.0/24");
    let text = fs::read_to_string(bed.dir.path().join("10.3.7.0-24.json")).unwrap();
    assert!(text.contains(r#""PublicIP":"1.2.3.4""#), "{text}");
    // Another start, without subnet.env.
    let again = bed.store().acquire(&bed.request("1.2.3.4", "")).await.unwrap();
    assert_eq!(again.subnet, held.subnet);
    let renewed = bed.store().renew(&again, &request.attrs).await.unwrap();
    assert_eq!(renewed.subnet, held.subnet);
    // Another node does not get it.
    let other = bed.store().acquire(&bed.request("1.2.3.5", "10.3.7.0-24")).await.unwrap();
    assert_ne!(other.subnet, held.subnet);
    assert!(
        fs::read_dir(bed.dir.path())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with(".new") })
    );
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let bed = Bed::new(NETWORK, DAY);
    let file = bed.dir.path().join("10.3.9.0-24.json");
    fs::write(&file, r#"{"PublicIP":"1.2.3.4"}"#).unwrap();
    let request = bed.request("1.2.3.4", "");
    let held = bed.store().acquire(&request).await.unwrap();
    assert_eq!((held.subnet.to_string(), held.expires), ("10.3.9.0/24".into(), Expiry::Never));
    assert!(!fs::read_to_string(&file).unwrap().contains(EXPIRATION));
    assert_eq!(bed.store().renew(&held, &request.attrs).await.unwrap().expires, Expiry::Never);
}

#[tokio::test]
async fn loss_and_theft_are_told_apart() {
    let bed = Bed::new(NETWORK, DAY);
    let request = bed.request("1.2.3.4", "10.3.7.0-24");
    let held = bed.store().acquire(&request).await.unwrap();
    let file = bed.dir.path().join("10.3.7.0-24.json");
    fs::write(&file, r#"{"PublicIP":"9.9.9.9"}"#).unwrap();
    let error = bed.store().renew(&held, &request.attrs).await.unwrap_err();
    assert!(matches!(error, StoreError::Stolen { to, .. } if to.to_string() == "9.9.9.9"));
    fs::remove_file(&file).unwrap();
    let error = bed.store().renew(&held, &request.attrs).await.unwrap_err();
    assert!(matches!(error, StoreError::Lost { .. }) && error.is_loss());
}

#[test]
fn many_at_once_get_one_each() {
    let config = r#"{"Network":"10.3.0.0/24","SubnetLen":29,"Backend":{"Type":"vxlan"}}"#;
    let bed = Bed::new(config, DAY);
    let acquire = |nth: u8| {
        // A process each, as far as names aside go: those carry the process's number.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let request = bed.request(&format!("1.2.3.{nth}"), "10.3.0.8-29");
        runtime.block_on(bed.store().acquire(&request))
    };
    let held: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=32).map(|nth| scope.spawn(move || acquire(nth))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (got, not): (Vec<_>, Vec<_>) = held.into_iter().partition(Result::is_ok);
    let subnets: BTreeSet<Subnet> = got.iter().map(|held| held.as_ref().unwrap().subnet).collect();
    // 31 subnets: the first is never given.
    assert_eq!((subnets.len(), got.len(), not.len()), (31, 31, 1));
    assert!(matches!(not[0], Err(StoreError::Exhausted { .. })));
}

#[tokio::test]
async fn what_is_expired_is_free_and_told_as_gone() {
    let bed = Bed::new(NETWORK, Duration::from_secs(1));
    let mut watch = Arc::new(bed.store()).watch();
    assert_eq!(watch.recv().await, Some(Event::Listed(Vec::new())));
    let held = bed.store().acquire(&bed.request("1.2.3.4", "10.3.7.0-24")).await.unwrap();
    let began = Instant::now();
    let Some(Event::Listed(leases)) = watch.recv().await else { panic!("a list") };
    assert_eq!(leases[0].key, "10.3.7.0-24");
    assert_eq!(watch.recv().await, Some(Event::Listed(Vec::new())));
    assert!(began.elapsed() < Duration::from_secs(10));
    // Its file is there until somebody wants the subnet.
    let other = bed.store().acquire(&bed.request("1.2.3.5", "10.3.7.0-24")).await.unwrap();
    assert_eq!(other.subnet, held.subnet);
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_stops_nothing() {
    let bed = Bed::new(NETWORK, DAY);
    fs::write(bed.dir.path().join("10.3.9.0-24.json"), "{").unwrap();
    fs::write(bed.dir.path().join("notes.json"), "{}").unwrap();
    bed.store().acquire(&bed.request("1.2.3.4", "10.3.7.0-24")).await.unwrap();
    let mut watch = Arc::new(bed.store()).watch();
    let Some(Event::Listed(leases)) = watch.recv().await else { panic!("a list") };
    let keys: Vec<(&str, bool)> =
        leases.iter().map(|entry| (entry.key.as_str(), entry.lease.is_ok())).collect();
    assert_eq!(keys, [("10.3.7.0-24", true), ("10.3.9.0-24", false), ("notes", false)]);
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let store = Dir::new("/nonexistent/leases".into(), DAY);
    let error = store.read_config().unwrap_err().to_string();
    assert!(error.contains("/nonexistent/leases/config.json does not exist"), "{error}");
}
