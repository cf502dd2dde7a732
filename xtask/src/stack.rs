//! How much stack the programs of an object need, as the oldest kernel that is served counts it: found
//! in a moment, and told by the names of functions, where that kernel refuses a program without
//! either.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail};
use object::{
    File, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind,
};

/// A program and all that it calls share so many bytes (`MAX_BPF_STACK`).
const MOST: u32 = 512;
/// To a multiple of so many bytes a function's share is rounded up (`check_max_stack_depth`; less since
/// Linux 6.8).
const SHARE: u32 = 32;

/// Operation codes of instructions (RFC 9669, section 4 and 5).
const LOAD_WIDE: u8 = 0x18;
const CALL: u8 = 0x85;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const CLASS: u8 = 0x07;
const LOAD: u8 = 1;
const STORE: u8 = 2;
const STORE_REGISTER: u8 = 3;
/// A call's source: a function of the object. A wide load's: the address of one, which is called back.
const FUNCTION: u8 = 1;
const CALLBACK: u8 = 4;
/// The register that holds the end of the stack.
const FRAME: u8 = 10;

/// Bytes of an instruction.
const INSTRUCTION: u8 = 8;

/// Where a function begins: its section and its offset there.
type Place = (usize, u64);

struct Function {
    name: String,
    is_program: bool,
    own: u32,
    calls: Vec<Place>,
}

/// A way of calls and the bytes that it needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    pub(crate) bytes: u32,
    /// From a program to the last that is called, each with its share.
    pub(crate) calls: Vec<(String, u32)>,
}

/// Fails if a program needs more than there is, and names the calls that do.
pub(crate) fn check(file: &File<'_>) -> Result<()> {
    let Some(deepest) = deepest(file)?.filter(|chain| chain.bytes > MOST) else { return Ok(()) };
    let calls: Vec<_> =
        deepest.calls.iter().map(|(name, bytes)| format!("  {bytes:>4}  {name}")).collect();
    bail!(
        "{} bytes of stack are needed where Linux 6.1 has {MOST}; keep less in one of these, or have \
         it called from further up:\n{}",
        deepest.bytes,
        calls.join("\n")
    )
}

/// The way of calls that needs the most.
fn deepest(file: &File<'_>) -> Result<Option<Chain>> {
    let functions = functions(file)?;
    let mut known = HashMap::new();
    let mut chains = Vec::new();
    for (&place, function) in &functions {
        if function.is_program {
            chains.push(follow(&functions, place, &mut known)?);
        }
    }
    Ok(chains.into_iter().max_by_key(|chain| chain.bytes))
}

/// The deepest way that begins with a function. There is no recursion: the kernel refuses it, and so
/// does the linker, which has none to lay out.
fn follow(
    functions: &BTreeMap<Place, Function>,
    place: Place,
    known: &mut HashMap<Place, Chain>,
) -> Result<Chain> {
    if let Some(chain) = known.get(&place) {
        return Ok(chain.clone());
    }
    let function = functions
        .get(&place)
        .with_context(|| format!("no function begins at {} of section {}", place.1, place.0))?;
    let share = function.own.max(1).next_multiple_of(SHARE);
    let mut below = Chain { bytes: 0, calls: Vec::new() };
    for &called in &function.calls {
        let chain = follow(functions, called, known)?;
        if chain.bytes > below.bytes {
            below = chain;
        }
    }
    let mut calls = vec![(function.name.clone(), share)];
    calls.extend(below.calls);
    let chain = Chain { bytes: share + below.bytes, calls };
    known.insert(place, chain.clone());
    Ok(chain)
}

fn functions(file: &File<'_>) -> Result<BTreeMap<Place, Function>> {
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index)?;
        let start = symbol.address() as usize;
        let code = section.data()?.get(start..start + symbol.size() as usize);
        let name = symbol.name()?.to_owned();
        let code = code.with_context(|| format!("{name} lies outside of its section"))?;
        functions.insert(
            (index.0, symbol.address()),
            Function {
                own: used(code),
                calls: calls(file, index, start, code)?,
                is_program: symbol.is_global() && section.name()? != ".text",
                name,
            },
        );
    }
    Ok(functions)
}

/// How far below its end a function uses its stack: by what it loads and stores there, and by the
/// addresses that it takes.
fn used(code: &[u8]) -> u32 {
    let mut deepest = 0;
    let mut copies = [false; 16];
    for instruction in instructions(code) {
        let Instruction { code, to, from, offset, number } = instruction;
        let base = match code & CLASS {
            LOAD => from,
            STORE | STORE_REGISTER => to,
            _ => 0,
        };
        let reach = if base == FRAME {
            i32::from(offset)
        } else if code == ADD && copies[usize::from(to)] {
            number
        } else {
            0
        };
        deepest = deepest.max(reach.min(0).unsigned_abs());
        let is_written = !matches!(code & CLASS, STORE | STORE_REGISTER);
        if is_written {
            copies[usize::from(to)] = code == MOVE && from == FRAME;
        }
    }
    deepest
}

/// The functions that one calls, or has called back.
fn calls(file: &File<'_>, index: SectionIndex, start: usize, code: &[u8]) -> Result<Vec<Place>> {
    let section = file.section_by_index(index)?;
    let relocations: HashMap<u64, _> = section.relocations().collect();
    let mut calls = Vec::new();
    let mut is_second_half = false;
    for (nth, instruction) in instructions(code).enumerate() {
        if is_second_half {
            is_second_half = false;
            continue;
        }
        is_second_half = instruction.code == LOAD_WIDE;
        let at = (start + nth * usize::from(INSTRUCTION)) as u64;
        let is_call = instruction.code == CALL && instruction.from == FUNCTION;
        let relocation = relocations.get(&at);
        if let Some(RelocationTarget::Symbol(target)) = relocation.map(object::Relocation::target) {
            let symbol = file.symbol_by_index(target)?;
            let is_code = matches!(symbol.kind(), SymbolKind::Text)
                || symbol.kind() == SymbolKind::Section && is_call;
            let (true, Some(section)) = (is_code, symbol.section_index()) else { continue };
            // Of a section as a whole, the instruction tells where.
            let by = match symbol.kind() {
                SymbolKind::Section => i64::from(instruction.number + 1) * i64::from(INSTRUCTION),
                _ => 0,
            };
            calls.push((section.0, symbol.address().wrapping_add_signed(by)));
        } else if is_call || instruction.code == LOAD_WIDE && instruction.from == CALLBACK {
            let by = (i64::from(instruction.number) + 1) * i64::from(INSTRUCTION);
            calls.push((index.0, at.wrapping_add_signed(by)));
        }
    }
    Ok(calls)
}

struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    number: i32,
}

fn instructions(code: &[u8]) -> impl Iterator<Item = Instruction> {
    code.chunks_exact(usize::from(INSTRUCTION)).map(|bytes| Instruction {
        code: bytes[0],
        to: bytes[1] & 0xf,
        from: bytes[1] >> 4,
        offset: i16::from_le_bytes([bytes[2], bytes[3]]),
        number: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> [u8; 8] {
        let registers = [code, from << 4 | to];
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&registers);
        bytes[2..4].copy_from_slice(&offset.to_le_bytes());
        bytes[4..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_used_is_what_is_stored_loaded_or_pointed_at() {
        let depth = |code: &[[u8; 8]]| used(&code.concat());
        // r0 = 0; exit
        assert_eq!(depth(&[instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]), 0);
        // *(u64 *)(r10 - 24) = r1; r3 = *(u32 *)(r10 - 40)
        let (store, load) = (instruction(0x7b, 10, 1, -24, 0), instruction(0x61, 3, 10, -40, 0));
        assert_eq!([depth(&[store]), depth(&[load]), depth(&[store, load])], [24, 40, 40]);
        // r2 = r10; r2 += -56, but not r3 += -56, nor the same after r2 = r1
        let copy = instruction(MOVE, 2, 10, 0, 0);
        let add = |to| instruction(ADD, to, 0, 0, -56);
        assert_eq!(depth(&[copy, add(2)]), 56);
        assert_eq!(depth(&[copy, add(3)]), 0);
        assert_eq!(depth(&[copy, instruction(MOVE, 2, 1, 0, 0), add(2)]), 0);
        // *(u64 *)(r1 - 8) = r2 is no stack.
        assert_eq!(depth(&[instruction(0x7b, 1, 2, -8, 0)]), 0);
    }

    #[test]
    fn the_deepest_way_is_followed_once() {
        let place = |at| (1, at);
        let function = |name: &str, own, calls: &[u64]| Function {
            name: name.into(),
            is_program: name == "program",
            own,
            calls: calls.iter().map(|&at| place(at)).collect(),
        };
        let functions = BTreeMap::from([
            (place(0), function("program", 33, &[8, 16])),
            (place(8), function("shallow", 100, &[24])),
            (place(16), function("deep", 1, &[24, 32])),
            (place(24), function("leaf", 0, &[])),
            (place(32), function("frame", 200, &[])),
        ]);
        let chain = follow(&functions, place(0), &mut HashMap::new()).expect("all are there");
        let calls = [("program", 64), ("deep", 32), ("frame", 224)];
        assert_eq!(chain.bytes, 320);
        assert_eq!(chain.calls, calls.map(|(name, bytes)| (name.to_owned(), bytes)));
        let missing = BTreeMap::from([(place(0), function("program", 0, &[8]))]);
        assert!(follow(&missing, place(0), &mut HashMap::new()).is_err());
    }
}
