//! An OCI image layout (image-spec v1.1, image-layout.md) in a tar archive, and nothing else of
//! it than programs need. The same programs make the same bytes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::files::{Files, PROGRAMS, directory, file};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image, for one or more processors.
#[derive(Debug)]
pub(crate) struct Image {
    /// `REPOSITORY/NAME:TAG`.
    pub(crate) reference: String,
    /// The path of the program that it runs.
    pub(crate) entrypoint: String,
    /// Where programs that are named without a path are looked for.
    pub(crate) path: String,
    /// What the program is told if whoever runs it says nothing.
    pub(crate) arguments: &'static [&'static str],
    /// `org.opencontainers.image.*`.
    pub(crate) labels: BTreeMap<String, String>,
    /// The layers of the file system, the lowest first, by processor, as the OCI image
    /// specification calls that.
    pub(crate) layers: BTreeMap<&'static str, Vec<Files>>,
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
    directory(&mut tar, "blobs", 0o755)?;
    directory(&mut tar, "blobs/sha256", 0o755)?;
    for (digest, bytes) in &blobs.bytes {
        file(&mut tar, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
    }
    tar.into_inner()?.flush()
}

impl Image {
    /// Of one static program, by processor.
    pub(crate) fn of_program(
        name: &str,
        reference: String,
        programs: BTreeMap<&'static str, Vec<u8>>,
    ) -> Self {
        let layers = programs
            .into_iter()
            .map(|(architecture, program)| (architecture, vec![Files::of_program(name, program)]));
        Self {
            reference,
            entrypoint: format!("/{PROGRAMS}/{name}"),
            path: format!("/{PROGRAMS}"),
            arguments: &[],
            labels: BTreeMap::new(),
            layers: layers.collect(),
        }
    }

    /// Puts the image's blobs aside and returns the descriptor of its index.
    fn index(&self, blobs: &mut Blobs) -> io::Result<Value> {
        let mut manifests = Vec::new();
        for (architecture, layers) in &self.layers {
            let mut manifest = self.manifest(blobs, architecture, layers)?;
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

    fn manifest(
        &self,
        blobs: &mut Blobs,
        architecture: &str,
        layers: &[Files],
    ) -> io::Result<Value> {
        let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
        for files in layers {
            let (diff_id, descriptor) = blobs.put_layer(&files.layer()?)?;
            diff_ids.push(diff_id);
            descriptors.push(descriptor);
        }
        let mut config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": [self.entrypoint],
                "Env": [format!("PATH={}", self.path)],
                "Labels": self.labels,
                // What a program may do is for who runs it to say: capabilities are given to root.
                "User": "0:0",
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if !self.arguments.is_empty() {
            config["config"]["Cmd"] = json!(self.arguments);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blobs.put_json(CONFIG, &config),
            "layers": descriptors,
            "annotations": self.labels,
        });
        Ok(blobs.put_json(MANIFEST, &manifest))
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
struct Blobs {
    bytes: BTreeMap<String, Vec<u8>>,
    /// Descriptors of layers by the digest of what is in them: images share layers.
    layers: BTreeMap<String, Value>,
}

impl Blobs {
    /// Returns the descriptor.
    fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        });
        self.bytes.insert(digest, bytes);
        descriptor
    }

    /// Returns the digest of what is in the layer, and the descriptor of the layer.
    fn put_layer(&mut self, layer: &[u8]) -> io::Result<(String, Value)> {
        let diff_id = format!("sha256:{}", digest(layer));
        if let Some(descriptor) = self.layers.get(&diff_id) {
            return Ok((diff_id, descriptor.clone()));
        }
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(layer)?;
        let descriptor = self.put(LAYER, gzip.finish()?);
        self.layers.insert(diff_id.clone(), descriptor.clone());
        Ok((diff_id, descriptor))
    }

    fn put_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.put(media_type, value.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    type Bytes = BTreeMap<String, Vec<u8>>;

    fn image(name: &'static str) -> Image {
        let programs = ["amd64", "arm64"].map(|arch| (arch, format!("{name} of {arch}").into()));
        let reference = format!("localhost/millrace/{name}:0");
        Image {
            labels: [("org.opencontainers.image.title".into(), name.into())].into(),
            ..Image::of_program(name, reference, programs.into())
        }
    }

    fn archive(images: &[Image]) -> Vec<u8> {
        let mut archive = Vec::new();
        write(images, &mut archive).unwrap();
        archive
    }

    fn files(archive: &[u8]) -> Bytes {
        let mut files = Bytes::new();
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
    fn follow<'a>(files: &'a Bytes, descriptor: &Value) -> &'a [u8] {
        let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &files[&format!("blobs/sha256/{hash}")];
        assert_eq!(digest(bytes), hash);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    fn follow_json(files: &Bytes, descriptor: &Value) -> Value {
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
        let another = Files::of_program("proxy-agent", b"another".to_vec());
        other.layers.insert("arm64", vec![another]);
        assert_ne!(archive(&[image("proxy-agent")]), archive(&[other]));
    }
}
