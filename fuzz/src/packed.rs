//! bochs, cloop and dmg images with some bytes changed. Opening and reading them ends in an answer, in bounded steps and memory.
//! Start at [`packed`].

use arbitrary::Unstructured;
use drystone_conformance::explore::TOP;
use drystone_conformance::meter::peak_of;
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::compute::Form;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::dmg::layout::{Chunk, Store, Trailer, encode_table};
use drystone_core::format::{bochs, cloop};
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;

/// Bytes of memory that a run may take: chunks of 64 MiB, packed and not, and what is kept of them.
const MEMORY_MAX: usize = 320 << 20;

/// Intents that a run may take.
const INTENTS_MAX: u64 = 10_000;

/// Decides what the image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn packed(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let (format, mut bytes) = match draw.below(3) {
        0 => ("bochs", a_bochs()),
        1 => ("cloop", a_cloop()),
        _ => ("dmg", a_dmg()),
    };
    for _ in 0..draw.below(6) {
        let at = draw.below(bytes.len() as u64) as usize;
        bytes[at] = match draw.below(3) {
            0 => 0,
            1 => 0xff,
            _ => draw.below(256) as u8,
        };
    }
    if draw.one_in(4) {
        bytes.truncate(draw.below(bytes.len() as u64) as usize);
    }
    let mut world = World::new();
    world.add_file(TOP, &bytes);
    let mut sim = Sim::new(draw.below(1 << 32), world);
    sim.stop_after = Some(INTENTS_MAX);
    let (ended, peak) = peak_of(|| sim.run_job(async |io| drop(looked(&io, format).await)).is_ok());
    assert!(ended, "looking at an image takes more than {INTENTS_MAX} intents");
    assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to look at the image, {MEMORY_MAX} allowed");
}

async fn looked(io: &Io, format: &str) -> Result<()> {
    let node = open(io, &from_filename(TOP, Some(format), OpenMode::default())?).await?;
    let len = io.len(node);
    for at in [0, 512, len / 2, len.saturating_sub(4096)] {
        let _ = io.read_bytes("fuzz", node, at.min(len), len.saturating_sub(at).min(4096) as usize).await;
    }
    io.close(node).await
}

/// Two extents, one of them in the file.
fn a_bochs() -> Vec<u8> {
    let (catalog_at, entries, bitmap_len, extent_len) = (512, 4, 2, 8192);
    let header =
        bochs::layout::Header { second: true, catalog_at, entries, bitmap_len, extent_len, size: 16384 };
    let mut bytes = header.encode().to_vec();
    bytes.extend([0, 0, 0, 0]);
    bytes.extend([0xff; 12]);
    bytes.extend([0x0f, 0xa5]);
    bytes.resize(bytes.len() + 510 + 8192, 9);
    bytes
}

/// A zlib stream of 1024 zeros, of stored blocks. Source: RFC 1950, RFC 1951 3.2.4.
fn stored() -> Vec<u8> {
    let mut stream = vec![0x78, 0x01, 0x01, 0x00, 0x04, 0xff, 0xfb];
    stream.resize(stream.len() + 1024, 0);
    // The Adler-32 of 1024 zeros.
    stream.extend([0x04, 0x00, 0x00, 0x01]);
    stream
}

fn a_cloop() -> Vec<u8> {
    let mut bytes = cloop::layout::Header { block_len: 1024, blocks: 2 }.encode().to_vec();
    let len = stored().len() as u64;
    let start = bytes.len() as u64 + 24;
    bytes.extend([start, start + len, start + 2 * len].iter().flat_map(|at| at.to_be_bytes()));
    bytes.extend([stored(), stored()].concat());
    bytes
}

/// 512 zeros as liblzma 5.4 packs them at its level 6.
const XZ: [u8; 72] = [
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x16,
    0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x01, 0xff, 0x00, 0x08, 0x5d, 0x00, 0x00, 0x6f, 0xfd,
    0xfe, 0xb3, 0x5f, 0xa8, 0x00, 0x00, 0x6c, 0xfc, 0x5b, 0xac, 0x22, 0xeb, 0x92, 0x69, 0x00, 0x01, 0x24,
    0x80, 0x04, 0x00, 0x00, 0x00, 0x38, 0xb4, 0xec, 0x61, 0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00, 0x00, 0x00,
    0x00, 0x04, 0x59, 0x5a,
];

/// The same by Apple Data Compression: a zero, and runs of what is one byte back.
fn adc() -> Vec<u8> {
    [&[0x80, 0][..], &[0x7f, 0, 0].repeat(8)].concat()
}

/// A chunk each of zeros, plain bytes, and packed ones, named by a resource fork.
fn a_dmg() -> Vec<u8> {
    let (packed, adc) = (stored(), adc());
    let mut bytes = [&[6; 512][..], &packed, &adc, &XZ].concat();
    let adc_at = 512 + packed.len() as u64;
    let chunk = |sector, sectors, at, len, store| Chunk { sector, sectors, at, len, store };
    let table = encode_table(
        &[
            chunk(0, 2, 0, 0, Store::Zeros),
            chunk(2, 1, 0, 512, Store::Plain),
            chunk(3, 2, 512, packed.len() as u64, Store::Packed(Form::Zlib)),
            chunk(5, 1, adc_at, adc.len() as u64, Store::Packed(Form::Adc)),
            chunk(6, 1, adc_at + adc.len() as u64, XZ.len() as u64, Store::Packed(Form::Xz)),
        ],
        0,
    );
    let fork_at = bytes.len() as u64;
    for word in [16, 0, 4 + table.len() as u32, 0, table.len() as u32] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(&table);
    let resources = (fork_at, bytes.len() as u64 - fork_at);
    bytes.extend(Trailer { data_at: 0, resources, plist: (0, 0), sectors: 7 }.encode());
    bytes
}
