//! A kernel as Debian ships it, and the file system it boots into.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::archive::Archive;

/// What `kernel-init` inserts, in this order: the packet path before tcx, a device that comes with its
/// module, and those that cases of the packet tier make.
const MODULES: [&str; 4] = ["sch_ingress", "cls_bpf", "dummy", "veth"];
/// The same for agents: devices of pods, and of tunnels.
const MODULES_OF_AGENTS: [&str; 4] = ["veth", "udp_tunnel", "ip6_udp_tunnel", "vxlan"];

/// Makes networks.
const IP: &str = "/usr/sbin/ip";

pub(crate) struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    pub(crate) fn find(series: &str) -> Self {
        let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/kernels");
        let all = env::var_os("MILLRACE_KERNELS").map_or_else(|| unpacked.into(), PathBuf::from);
        let kernel = Self { dir: all.join(series) };
        let image = kernel.vmlinuz();
        assert!(
            image.exists(),
            "{} is not there; `cargo xtask test --tier packet` downloads Debian's kernels",
            image.display()
        );
        kernel
    }

    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Keeps what the machine wrote beside the kernel, for people.
    pub(crate) fn keep_log(&self, arguments: &str, text: &str) {
        let name = if arguments.is_empty() { "console.log" } else { "console-of-agents.log" };
        let path = self.dir.join(name);
        if let Err(err) = fs::write(&path, text) {
            println!("{}: {err}", path.display());
        }
    }

    /// `kernel-init` as the first process, the objects, the packet tier for it to run and `ip` for that,
    /// and the libraries of all: the binaries are those that run here, not built anew.
    pub(crate) fn initramfs(&self) -> Vec<u8> {
        let packet = packet_tier();
        let objects =
            ["proxy.o", "overlay.o"].map(|name| (format!("/objects/{name}"), object(name)));
        self.archive(&[("/packet", &*packet), ("/ip", Path::new(IP))], objects.into(), &MODULES)
    }

    /// `kernel-init` as the first process, the agents for it to run, and `ip` to make networks by.
    pub(crate) fn initramfs_of_agents(&self) -> Vec<u8> {
        let [proxy, flannel] = ["proxy-agent", "flannel-agent"].map(|name| lab::dist().join(name));
        for agent in [&proxy, &flannel] {
            assert!(
                agent.exists(),
                "{} is not there; `cargo xtask build` makes it",
                agent.display()
            );
        }
        let programs =
            [("/proxy-agent", &*proxy), ("/flannel-agent", &*flannel), ("/ip", Path::new(IP))];
        self.archive(&programs, Vec::new(), &MODULES_OF_AGENTS)
    }

    fn archive(
        &self,
        programs: &[(&str, &Path)],
        files: Vec<(String, Vec<u8>)>,
        modules: &[&str],
    ) -> Vec<u8> {
        let init = Path::new(env!("CARGO_BIN_EXE_kernel-init"));
        let programs: Vec<_> = [("/init", init)].iter().chain(programs).copied().collect();
        let mut archive = Archive::default();
        let mut directories = BTreeSet::new();
        make_directories(&mut archive, &mut directories, "/dev");
        archive.console("/dev/console");
        for (place, path) in &programs {
            archive.file(place, &stripped(path));
        }
        make_directories(&mut archive, &mut directories, "/objects");
        for (place, contents) in files {
            archive.file(&place, &contents);
        }
        make_directories(&mut archive, &mut directories, "/modules");
        for (at, name) in modules.iter().enumerate() {
            archive.file(&format!("/modules/{at}-{name}.ko"), &self.module(name));
        }
        let libraries: BTreeSet<_> =
            programs.into_iter().flat_map(|(_, path)| libraries(path)).collect();
        for path in libraries {
            let directory = Path::new(&path).parent().expect("a library in a directory");
            make_directories(&mut archive, &mut directories, &directory.to_string_lossy());
            archive.file(&path, &read(Path::new(&path)));
        }
        archive.finish()
    }

    /// A module, unpacked if the package has it packed.
    fn module(&self, name: &str) -> Vec<u8> {
        let plain = find(&self.dir.join("modules"), &format!("{name}.ko"));
        if let Some(path) = plain {
            return read(&path);
        }
        let packed = find(&self.dir.join("modules"), &format!("{name}.ko.xz"));
        let packed = packed.unwrap_or_else(|| panic!("{} has no {name}.ko", self.dir.display()));
        output(Command::new("xz").args(["--decompress", "--stdout"]).arg(packed))
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{complaint}", output.status);
    output.stdout
}

/// The file of this name, in the directory or below.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    entries.flatten().map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() {
            find(&path, name)
        } else {
            path.file_name().is_some_and(|found| found == name).then_some(path)
        }
    })
}

fn object(name: &str) -> Vec<u8> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf");
    let all = env::var_os("MILLRACE_BPF_OBJECTS").map_or_else(|| built.into(), PathBuf::from);
    let path = all.join(name);
    assert!(path.exists(), "{} is not there; `cargo xtask build` makes it", path.display());
    read(&path)
}

/// The packet tier's binary, built if need be.
fn packet_tier() -> PathBuf {
    let messages =
        output(Command::new(env!("CARGO")).current_dir(env!("CARGO_MANIFEST_DIR")).args([
            "test",
            "--quiet",
            "--test=packet",
            "--no-run",
            "--message-format=json",
        ]));
    let messages = String::from_utf8_lossy(&messages);
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_tier = message["target"]["name"] == "packet";
        message["executable"].as_str().filter(|_| is_tier).map(PathBuf::from)
    });
    executable.expect("cargo names the binary that it has built")
}

/// A binary without what only debuggers read, which is nine tenths of it.
fn stripped(path: &Path) -> Vec<u8> {
    let copy = tempfile::NamedTempFile::new().expect("a temporary file");
    output(Command::new("strip").arg("-o").arg(copy.path()).arg(path));
    read(copy.path())
}

/// The paths of a binary's libraries, the loader among them; none of one that is static, at which `ldd`
/// may fail.
fn libraries(binary: &Path) -> Vec<String> {
    let lines = Command::new("ldd").arg(binary).output().expect("ldd");
    String::from_utf8_lossy(&lines.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(String::from)
        .collect()
}

/// The directory and those above it, each once.
fn make_directories(archive: &mut Archive, made: &mut BTreeSet<String>, path: &str) {
    for (at, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]) {
        if made.insert(path[..at].to_owned()) {
            archive.directory(&path[..at]);
        }
    }
}
