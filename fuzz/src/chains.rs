//! Disks of more than one file: children of VMDK, VHDX and VHD images, and extents of every kind, with some bytes of some of
//! them changed; and Parallels images with dirty bitmaps. Using one ends in an answer, in bounded steps and memory. Start at
//! [`chains`].

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, image_in, straight};
use drystone_conformance::scenario::Draw;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::format::vhdx::layout::{Guid, HEADERS_AT, Header};
use drystone_core::format::vmdk::{self, Subformat};
use drystone_core::format::{parallels, vhdx, vpc};
use drystone_core::graph::open::open;
use drystone_core::intent::Fua;
use drystone_core::job::ImageSpec;

use crate::used::{Usage, spec};

/// Bytes of a disk.
const LEN: u64 = 3 << 20;

/// The parent's name.
const BASE: &str = "base";

/// Decides what the files say, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn chains(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let (format, mut world) = match draw.below(8) {
        0 => ("vmdk", vmdk_child()),
        1 => ("vhdx", vhdx_child(&mut draw)),
        2 => ("vpc", vpc_child(&mut draw)),
        3 => ("vmdk", described("vmfsSparse", "RW 8192 VMFSSPARSE \"extent\"", &cowd())),
        4 => ("vmdk", described("seSparse", "RW 65536 SESPARSE \"extent\"", &se_sparse())),
        5 => ("vmdk", described("twoGbMaxExtentFlat", flat(&mut draw), &[7; 8192])),
        6 => ("vmdk", footer()),
        _ => ("parallels", with_bitmap()),
    };
    let paths: Vec<String> = world.paths().map(str::to_owned).collect();
    for path in &paths {
        let mut file = world.disk(path).expect("it is there").view().clone();
        for _ in 0..draw.below(4) {
            damage(&mut file, &mut draw);
        }
        if draw.one_in(12) {
            let len = draw.below(file.len() + 1);
            file.set_len(len);
        }
        world.add_disk(path, world.default_config.clone(), file);
    }
    let usage = Usage { format, packs: format == "vmdk", intents_max: 50_000, memory_max: 256 << 20 };
    let seed = draw.below(1 << 32);
    let _ = usage.of(world, seed);
}

/// Changes a number where there is some: what is zero says nothing, more often than not.
fn damage(file: &mut Sparse, draw: &mut Unstructured<'_>) {
    let (mut at, len) = (draw.below(file.len().max(8)) & !3, file.len());
    if draw.one_in(2) {
        at = draw.below(1024.min(len.max(8))) & !3;
    }
    for _ in 0..256 {
        if at + 4 > len || file.bytes(at, 4) != [0; 4] {
            break;
        }
        at += 4;
    }
    let number = match draw.below(4) {
        0 => 0,
        1 => u32::MAX,
        2 => draw.below(64) as u32,
        _ => draw.below(1 << 32) as u32,
    };
    if at + 4 <= len {
        file.write(at, &number.to_le_bytes());
    }
}

/// An image as a parent, and an empty world with it.
fn parent(image: &ImageSpec) -> (World, Sparse) {
    let made = image_in(World::new(), image);
    let file = made.disk(TOP).expect("it was made").view().clone();
    let mut world = World::new();
    world.add_disk(BASE, world.default_config.clone(), file.clone());
    (world, file)
}

fn vmdk_child() -> World {
    let (world, _) = parent(&ImageSpec::Vmdk(vmdk::CreateOptions::new(LEN)));
    image_in(
        world,
        &ImageSpec::Vmdk(vmdk::CreateOptions { backing: Some(BASE.into()), ..vmdk::CreateOptions::new(LEN) }),
    )
}

fn vhdx_child(draw: &mut Unstructured<'_>) -> World {
    let options = vhdx::CreateOptions { block_size: 1 << 20, ..vhdx::CreateOptions::new(LEN) };
    let (world, file) = parent(&ImageSpec::Vhdx(options.clone()));
    let newest = HEADERS_AT.map(|at| Header::parse(at, &file.bytes(at, 4096)));
    let right = newest.into_iter().flatten().max_by_key(|header| header.sequence);
    let data_write = match right {
        Some(header) if !draw.one_in(4) => header.data_write,
        _ => Guid::NIL,
    };
    let parent = Some(vhdx::Parent { relative_path: BASE.into(), data_write });
    image_in(world, &ImageSpec::Vhdx(vhdx::CreateOptions { parent, ..options }))
}

fn vpc_child(draw: &mut Unstructured<'_>) -> World {
    let options = vpc::CreateOptions { force_size: true, ..vpc::CreateOptions::new(LEN) };
    let (world, file) = parent(&ImageSpec::Vpc(options.clone()));
    let mut uuid: [u8; 16] = file.bytes(68, 16).try_into().expect("so many");
    if draw.one_in(4) {
        uuid[0] ^= 1;
    }
    let parent = Some(vpc::Parent { relative_path: BASE.into(), uuid });
    image_in(world, &ImageSpec::Vpc(vpc::CreateOptions { parent, ..options }))
}

/// A descriptor with a line for an extent, and the extent.
fn described(kind: &str, line: &str, extent: &[u8]) -> World {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{kind}\"\n{line}\n"
    );
    let mut world = World::new();
    world.add_file(TOP, text.as_bytes());
    world.add_file("extent", extent);
    world
}

fn flat(draw: &mut Unstructured<'_>) -> &'static str {
    const LINES: [&str; 4] = [
        "RW 8 FLAT \"extent\" 0\nRW 8 ZERO\nRW 8 FLAT \"extent\" 8",
        "RW 17 FLAT \"extent\" 0",
        "RDONLY 16 VMFS \"extent\"",
        "RW 8 FLAT \"extent\" -1",
    ];
    LINES[draw.below(4) as usize]
}

/// A COWD extent: a directory at sector 4, a table at 5, and two grains of 64 KiB. Source: the sheet of
/// [`CowdHeader`](vmdk::layout::CowdHeader).
fn cowd() -> Vec<u8> {
    let mut bytes = vec![0; (37 + 256) * 512];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, u32::from_le_bytes(*b"COWD"));
    for (value, nth) in [1u32, 3, 8192, 128, 4, 1, 293, 8, 16, 63].into_iter().zip(1..) {
        put(nth * 4, value);
    }
    put(2048, 5);
    put(2560, 37);
    put(2560 + 12, 165);
    bytes
}

/// An seSparse extent of 32 MiB: volatile header, directory, and two tables. Source: the sheet of
/// [`SeSparseHeader`](vmdk::layout::SeSparseHeader).
fn se_sparse() -> Vec<u8> {
    let mut bytes = vec![0; 300 * 512];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let places = [(1, 1), (2, 2), (2048, 2048), (8, 1), (64, 128), (200, 8), (208, 8), (256, 44)];
    let head = [0xcafe_babe, 0x2_0000_0001, 65536, 8, 64, 0, 0, 0, 0, 0];
    let fields = head.into_iter().chain(places.into_iter().flat_map(|(at, len)| [at, len]));
    for (value, nth) in fields.zip(0..) {
        put(nth * 8, value);
    }
    put(512, 0xcafe_cafe);
    put(8 * 512, 0x1000_0000_0000_0001);
    let table = 64 * 512 + 64 * 512;
    put(table, 3 << 60 | 3 << 48);
    put(table + 16, 2 << 60);
    put(table + 24, 1 << 60);
    bytes
}

/// A stream-optimized image whose header leaves the place of the directory to the footer.
fn footer() -> World {
    let options =
        vmdk::CreateOptions { subformat: Subformat::StreamOptimized, ..vmdk::CreateOptions::new(LEN) };
    let mut world = image_in(World::new(), &ImageSpec::Vmdk(options));
    let mut bytes = world.export(TOP);
    let mut end = [0; 3 * 512];
    (end[0], end[12]) = (1, 3);
    end[512..1024].copy_from_slice(&bytes[..512]);
    bytes[56..64].fill(0xff);
    bytes.extend(end);
    world.add_file(TOP, &bytes);
    world
}

/// A Parallels image with a dirty bitmap of which some bits are set.
fn with_bitmap() -> World {
    let options = parallels::CreateOptions { size: 64 << 10, cluster_size: 4096 };
    let world = image_in(World::new(), &ImageSpec::Parallels(options));
    let (made, world) = straight(world, |io| async move {
        let node = open(&io, &spec("parallels", WRITABLE)).await?;
        let driver = io.driver(node).expect("it is open");
        let image = driver.as_any().downcast_ref::<parallels::Parallels>().expect("of this format");
        image.add_bitmap([7; 16], 512)?;
        io.write("fuzz", node, 4096, Buf::from(vec![1; 512]), Fua::No).await.1?;
        io.close(node).await
    });
    made.expect("an image in order takes a bitmap");
    world
}
