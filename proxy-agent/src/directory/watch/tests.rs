//! A real directory and the real thread. Nothing here sleeps for what it waits for.

use std::{collections::BTreeMap, fs, io::Write, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;

use super::*;
use crate::model::{Change, Object};

struct Listener {
    batches: Receiver<Batch>,
    synced: bool,
    services: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Listener {
    fn new(path: &Path) -> Self {
        let batches = watch(path.into()).expect("thread");
        Self { batches, synced: false, services: BTreeMap::new(), problems: Vec::new() }
    }

    fn take(&mut self) {
        let batch = self.batches.blocking_recv().expect("watcher lives");
        self.synced |= batch.synced;
        self.problems = batch.problems.iter().map(ToString::to_string).collect();
        for change in batch.changes {
            match change {
                Change::Put(key, Object::Service(service)) => {
                    let address = service.cluster_ips[0].to_string();
                    self.services.insert(key.name.name.to_string(), address);
                }
                Change::Put(key, _) | Change::Delete(key) => {
                    self.services.remove(&*key.name.name);
                }
            }
        }
    }

    /// Takes batches until this is in force; hangs, and so fails, if it never is.
    fn until(&mut self, services: &[(&str, &str)], problems: usize) {
        let expected: BTreeMap<String, String> =
            services.iter().map(|(name, address)| ((*name).into(), (*address).into())).collect();
        while !self.synced || self.services != expected || self.problems.len() != problems {
            self.take();
        }
    }
}

fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {address}}}\n"
    )
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("a.yaml"), service("a", "10.0.0.1")).expect("file");
    directory
}

#[test]
fn the_first_batch_is_everything() {
    let directory = directory();
    let path = directory.path();
    for number in 0..200 {
        let text = service(&format!("s{number}"), &format!("10.1.0.{number}"));
        fs::write(path.join(format!("{number}.yml")), text).expect("file");
    }
    fs::write(path.join("notes.txt"), "kind: [").expect("file");
    fs::write(path.join(".a.yaml"), "kind: [").expect("file");
    fs::create_dir(path.join("sub.yaml")).expect("directory");
    let mut listener = Listener::new(path);
    listener.take();
    assert!(listener.synced);
    assert_eq!((listener.services.len(), listener.problems.len()), (201, 0));
}

#[test]
fn files_come_change_go_and_are_renamed() {
    let directory = directory();
    let file = |name: &str| directory.path().join(name);
    let mut listener = Listener::new(directory.path());
    listener.until(&[("a", "10.0.0.1")], 0);
    fs::write(file("b.json"), "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"b\"},\"spec\":{\"clusterIP\":\"10.0.0.2\"}}").expect("file");
    listener.until(&[("a", "10.0.0.1"), ("b", "10.0.0.2")], 0);
    fs::write(file("next"), service("a", "10.0.0.3")).expect("file");
    fs::rename(file("next"), file("a.yaml")).expect("rename");
    listener.until(&[("a", "10.0.0.3"), ("b", "10.0.0.2")], 0);
    fs::rename(file("a.yaml"), file("c.yaml")).expect("rename");
    fs::remove_file(file("b.json")).expect("remove");
    listener.until(&[("a", "10.0.0.3")], 0);
    fs::write(file("c.yaml"), "kind: [").expect("file");
    listener.until(&[("a", "10.0.0.3")], 1);
    fs::rename(file("c.yaml"), file("c.off")).expect("rename");
    listener.until(&[], 0);
}

#[test]
fn a_file_is_read_when_its_writer_has_closed_it() {
    let directory = directory();
    let mut listener = Listener::new(directory.path());
    listener.until(&[("a", "10.0.0.1")], 0);
    let text = service("a", "10.0.0.22");
    let (first, second) = text.split_at(text.len() - 3);
    let mut file = fs::File::create(directory.path().join("a.yaml")).expect("file");
    file.write_all(first.as_bytes()).expect("write");
    // Had the half been read, this other file would come behind it.
    fs::write(directory.path().join("b.yaml"), service("b", "10.0.0.2")).expect("file");
    listener.until(&[("a", "10.0.0.1"), ("b", "10.0.0.2")], 0);
    file.write_all(second.as_bytes()).expect("write");
    drop(file);
    listener.take();
    assert_eq!(listener.services["a"], "10.0.0.22");
}

#[test]
fn links_and_mounted_config_maps_are_followed() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    for (version, address) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
        fs::create_dir(path.join(version)).expect("directory");
        fs::write(path.join(version).join("a.yaml"), service("a", address)).expect("file");
    }
    symlink("..1", path.join("..data")).expect("link");
    symlink("..data/a.yaml", path.join("a.yaml")).expect("link");
    let mut listener = Listener::new(path);
    listener.until(&[("a", "10.0.0.1")], 0);
    symlink("..2", path.join("..data_tmp")).expect("link");
    fs::rename(path.join("..data_tmp"), path.join("..data")).expect("rename");
    listener.until(&[("a", "10.0.0.2")], 0);
    fs::write(path.join("store"), service("b", "10.0.0.5")).expect("file");
    symlink("store", path.join("b.yaml")).expect("link");
    fs::hard_link(path.join("store"), path.join("c.yaml")).expect("link");
    listener.until(&[("a", "10.0.0.2"), ("b", "10.0.0.5")], 1);
}

#[test]
fn a_directory_that_goes_away_takes_nothing_along() {
    let above = tempfile::tempdir().expect("directory");
    let path = above.path().join("manifests");
    let mut listener = Listener::new(&path);
    listener.take();
    assert!(!listener.synced && listener.problems.len() == 1, "{:?}", listener.problems);
    fs::create_dir(above.path().join("new")).expect("directory");
    fs::write(above.path().join("new/a.yaml"), service("a", "10.0.0.1")).expect("file");
    fs::rename(above.path().join("new"), &path).expect("rename");
    listener.until(&[("a", "10.0.0.1")], 0);
    fs::rename(&path, above.path().join("old")).expect("rename");
    listener.until(&[("a", "10.0.0.1")], 1);
    fs::create_dir(&path).expect("directory");
    fs::write(path.join("b.yaml"), service("b", "10.0.0.2")).expect("file");
    listener.until(&[("a", "10.0.0.1"), ("b", "10.0.0.2")], 0);
    listener.until(&[("b", "10.0.0.2")], 0);
}

#[test]
fn what_is_no_file_is_passed_over() {
    let directory = directory();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("pipe.yaml"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("pipe");
    fs::write(directory.path().join("binary.yaml"), [b'\n', 0xff]).expect("file");
    symlink("nowhere", directory.path().join("dangling.yaml")).expect("link");
    let mut listener = Listener::new(directory.path());
    listener.until(&[("a", "10.0.0.1")], 1);
    assert!(listener.problems[0].contains("line 2 is not UTF-8"), "{:?}", listener.problems);
}
