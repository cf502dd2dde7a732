//! The eBPF objects: compiled, checked, stripped, and put into `target/bpf`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::{
    command::{self, clean},
    compiler::{self, Compiler, Core, TARGET},
    machine::Machine,
    stack,
};

/// The objects, by the names of their binaries.
const OBJECTS: [&str; 2] = ["proxy", "overlay"];

/// Builds the objects and returns the directory that they are in.
pub(crate) fn build(machine: &Machine) -> Result<PathBuf> {
    let compiler = compiler::provide(machine)?;
    let directory = machine.target().join("bpf");
    fs::create_dir_all(&directory)?;
    for name in OBJECTS {
        let built = compile(machine, &compiler, name)?;
        let programs = check(&built)?;
        let object = directory.join(name).with_extension("o");
        let fresh = object.with_extension("new");
        strip(&compiler, &built, &fresh)?;
        put(&fresh, &object)?;
        let bytes = fs::metadata(&object)?.len();
        eprintln!("target/bpf/{name}.o: {programs} programs, {bytes} bytes");
    }
    Ok(directory)
}

fn compile(machine: &Machine, compiler: &Compiler, name: &str) -> Result<PathBuf> {
    let core = match compiler.core {
        Core::Prebuilt => "prebuilt core",
        Core::FromSource => "core built from source",
    };
    eprintln!("building eBPF object {name} with {} ({core})", compiler.rustc.display());
    let dir = machine.target().join("bpf-build");
    let mut cargo = compiler.cargo(machine);
    cargo.args(["build", "--quiet", "--release", "--bin", name, "--target-dir"]).arg(&dir);
    command::run(cargo.args(compiler.target_arguments()))?;
    Ok(dir.join(TARGET).join("release").join(name))
}

/// Counts the programs, and refuses what the verifier would refuse with no word of why: a
/// reachable panic leaves a function that never returns. `bpftool` prints fields by the BTF.
fn check(path: &Path) -> Result<usize> {
    let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*data)
        .with_context(|| format!("{} is no ELF object", path.display()))?;
    if file.section_by_name(".BTF").is_none() {
        bail!("{} has no BTF; bpf-linker was not given --btf", path.display());
    }
    let panic = file
        .symbols()
        .filter_map(|symbol| symbol.name().ok().map(String::from))
        .find(|name| name.contains("panic") || name.contains("rust_begin_unwind"));
    if let Some(name) = panic {
        bail!(
            "{} can panic (it holds {name}), which no verifier accepts; look for indexing, \
             unchecked division or unwrap in the programs",
            path.display()
        );
    }
    stack::check(&file).with_context(|| path.display().to_string())?;
    let programs = file.symbols().filter(|symbol| {
        symbol.is_global()
            && symbol.kind() == object::SymbolKind::Text
            && symbol
                .section_index()
                .and_then(|index| file.section_by_index(index).ok())
                .is_some_and(|section| section.name().is_ok_and(|name| name != ".text"))
    });
    match programs.count() {
        0 => bail!("{} holds no program", path.display()),
        count => Ok(count),
    }
}

/// Takes out DWARF, four fifths of the object; the loader needs only the BTF.
fn strip(compiler: &Compiler, built: &Path, object: &Path) -> Result<()> {
    let Some(objcopy) = objcopy(compiler) else {
        eprintln!("no llvm-objcopy found: {} keeps its debug sections", object.display());
        fs::copy(built, object)?;
        return Ok(());
    };
    command::run(clean(objcopy).arg("--strip-debug").arg(built).arg(object))
}

/// Puts a file in place of another, unless that says the same: agents are built anew around a file
/// that was written.
fn put(fresh: &Path, place: &Path) -> Result<()> {
    if fs::read(place).is_ok_and(|old| fs::read(fresh).is_ok_and(|new| new == old)) {
        return Ok(fs::remove_file(fresh)?);
    }
    fs::rename(fresh, place).with_context(|| format!("cannot write {}", place.display()))
}

fn objcopy(compiler: &Compiler) -> Option<PathBuf> {
    let versions =
        (19..=24).rev().map(|version| format!("/usr/lib/llvm-{version}/bin/llvm-objcopy"));
    let rustlib = compiler.sysroot.join("lib/rustlib");
    let rust = fs::read_dir(rustlib)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin/rust-objcopy"));
    command::find("llvm-objcopy")
        .into_iter()
        .chain(versions.map(PathBuf::from))
        .chain(rust)
        .find(|path| path.exists())
}
