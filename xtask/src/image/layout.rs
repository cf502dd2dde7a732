//! An OCI image layout (image-spec v1.1, image-layout.md) in a tar archive, and nothing else of
//! it than programs need. The same programs make the same bytes: no time, no owner and no order
//! of a file system is in it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Where an image has its program, so that `PATH` leads there.
const DIRECTORY: &str = "usr/local/bin";

/// An image of one static program, for one or more processors.
#[derive(Debug)]
pub(crate) struct Image {
    /// Of the program, and the last part of the image's own name.
    pub(crate) name: &'static str,
    /// `REPOSITORY/NAME:TAG`.
    pub(crate) reference: String,
    /// What the program is told if whoever runs it says nothing.
    pub(crate) arguments: &'static [&'static str],
    /// `org.opencontainers.image.*`.
    pub(crate) labels: BTreeMap<String, String>,
    /// The program by processor, as the OCI image specification calls that.
    pub(crate) programs: BTreeMap<&'static str, Vec<u8>>,
}

/// Writes images into one archive.
pub(crate) fn write(images: &[Image], archive: impl Write) -> io::Result<()> {
    let mut blobs = Blobs::default();
    let indexes =
        images.iter().map(|image| image.index(&mut blobs)).collect::<io::Result<Vec<_>>>()?;
    let index = index(&indexes);
    let mut tar = tar::Builder::new(archive);
    file(
        &mut tar,
        "oci-layout",
        0o644,
        json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes(),
    )?;
    file(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
    directory(&mut tar, "blobs")?;
    directory(&mut tar, "blobs/sha256")?;
    for (digest, bytes) in &blobs.0 {
        file(&mut tar, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
    }
    tar.into_inner()?.flush()
}

impl Image {
    /// Puts the image's blobs aside and returns the descriptor of its index.
    fn index(&self, blobs: &mut Blobs) -> io::Result<Value> {
        let mut manifests = Vec::new();
        for (architecture, program) in &self.programs {
            let mut manifest = self.manifest(blobs, architecture, program)?;
            manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
            manifests.push(manifest);
        }
        let mut descriptor = blobs.put_json(INDEX, &index(&manifests));
        descriptor["annotations"] = json!({
            // What skopeo and podman look for, and what containerd takes as the image's name.
            "org.opencontainers.image.ref.name": self.reference,
            "io.containerd.image.name": self.reference,
        });
        Ok(descriptor)
    }

    fn manifest(&self, blobs: &mut Blobs, architecture: &str, program: &[u8]) -> io::Result<Value> {
        let layer = self.layer(program)?;
        let mut config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": [format!("/{DIRECTORY}/{}", self.name)],
                "Env": [format!("PATH=/{DIRECTORY}")],
                "Labels": self.labels,
                // What a program may do is for who runs it to say: capabilities are given to root.
                "User": "0:0",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
        });
        if !self.arguments.is_empty() {
            config["config"]["Cmd"] = json!(self.arguments);
        }
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&layer)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blobs.put_json(CONFIG, &config),
            "layers": [blobs.put(LAYER, gzip.finish()?)],
            "annotations": self.labels,
        });
        Ok(blobs.put_json(MANIFEST, &manifest))
    }

    /// The one layer: the program, and the directories above it.
    fn layer(&self, program: &[u8]) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (end, _) in DIRECTORY.match_indices('/') {
            directory(&mut tar, &DIRECTORY[..end])?;
        }
        directory(&mut tar, DIRECTORY)?;
        file(&mut tar, &format!("{DIRECTORY}/{}", self.name), 0o755, program)?;
        tar.into_inner()
    }
}

fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// What is named by its digest, sorted by it.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Returns the descriptor.
    fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        });
        self.0.insert(digest, bytes);
        descriptor
    }

    fn put_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.put(media_type, value.to_string().into_bytes())
    }
}

fn directory(tar: &mut tar::Builder<impl Write>, path: &str) -> io::Result<()> {
    entry(tar, &format!("{path}/"), EntryType::Directory, 0o755, &[])
}

fn file(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    entry(tar, path, EntryType::Regular, mode, bytes)
}

/// Of root, made in 1970.
fn entry(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    type Files = BTreeMap<String, Vec<u8>>;

    fn image(name: &'static str) -> Image {
        let programs = ["amd64", "arm64"].map(|arch| (arch, format!("{name} of {arch}").into()));
        Image {
            name,
            reference: format!("localhost/millrace/{name}:0"),
            arguments: &[],
            labels: [("org.opencontainers.image.title".into(), name.into())].into(),
            programs: programs.into(),
        }
    }

    fn archive(images: &[Image]) -> Vec<u8> {
        let mut archive = Vec::new();
        write(images, &mut archive).unwrap();
        archive
    }

    fn files(archive: &[u8]) -> Files {
        let mut files = Files::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
            if entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                files.insert(entry.path().unwrap().display().to_string(), bytes);
            }
        }
        files
    }

    /// What a descriptor points to, if that has the size and the digest that it says.
    fn follow<'a>(files: &'a Files, descriptor: &Value) -> &'a [u8] {
        let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &files[&format!("blobs/sha256/{hash}")];
        assert_eq!(digest(bytes), hash);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    fn follow_json(files: &Files, descriptor: &Value) -> Value {
        let value: Value = serde_json::from_slice(follow(files, descriptor)).unwrap();
        let inner = &value["mediaType"];
        assert!(inner.is_null() || *inner == descriptor["mediaType"], "{value}");
        value
    }

    fn list(value: &Value) -> &[Value] {
        value.as_array().unwrap()
    }

    #[test]
    fn every_descriptor_is_true_down_to_the_program() {
        let files = files(&archive(&[image("proxy-agent"), image("flannel-agent")]));
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let top: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let mut found = Vec::new();
        for of_image in list(&top["manifests"]) {
            let reference = &of_image["annotations"]["org.opencontainers.image.ref.name"];
            for of_platform in list(&follow_json(&files, of_image)["manifests"]) {
                let manifest = follow_json(&files, of_platform);
                let config = follow_json(&files, &manifest["config"]);
                assert_eq!(config["architecture"], of_platform["platform"]["architecture"]);
                let layers = list(&manifest["layers"]);
                assert_eq!((layers.len(), list(&config["rootfs"]["diff_ids"]).len()), (1, 1));
                let mut layer = Vec::new();
                let packed = follow(&files, &layers[0]);
                flate2::read::GzDecoder::new(packed).read_to_end(&mut layer).unwrap();
                assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(&layer)));
                let inside = super::tests::files(&layer);
                let entry = config["config"]["Entrypoint"][0].as_str().unwrap();
                let program = &inside[entry.trim_start_matches('/')];
                assert_eq!(inside.len(), 1, "{inside:?}");
                found.push((reference.clone(), String::from_utf8(program.clone()).unwrap()));
            }
        }
        let expected = ["proxy-agent", "flannel-agent"].iter().flat_map(|name| {
            ["amd64", "arm64"].map(|arch| {
                (json!(format!("localhost/millrace/{name}:0")), format!("{name} of {arch}"))
            })
        });
        assert_eq!(found, expected.collect::<Vec<_>>());
    }

    #[test]
    fn the_same_programs_make_the_same_archive() {
        assert_eq!(archive(&[image("proxy-agent")]), archive(&[image("proxy-agent")]));
        let mut other = image("proxy-agent");
        other.programs.insert("arm64", b"another".to_vec());
        assert_ne!(archive(&[image("proxy-agent")]), archive(&[other]));
    }

    #[test]
    fn a_program_may_be_run_by_all_and_written_by_none() {
        let layer = image("proxy-agent").layer(b"x").unwrap();
        let mut modes = Vec::new();
        for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            modes.push((path, entry.header().mode().unwrap()));
        }
        let expected = ["usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/proxy-agent"];
        assert_eq!(modes, expected.map(|path| (path.to_owned(), 0o755)));
    }
}
