//! QEMU's tools as makers and judges of images.

use drystone_conformance::cases::{WRITABLE, qcow2};
use drystone_conformance::qemu::{Folder, Recipe};
use drystone_conformance::suite::{Run, Stage};
use drystone_conformance::world::World;
use drystone_core::graph::open::NodeSpec;
use drystone_core::graph::options::from_filename;

/// The file of an image as raw: what the suite can open without knowing the format.
fn as_file(_: &World, path: &str) -> NodeSpec {
    NodeSpec::raw(NodeSpec::file(path, WRITABLE))
}

#[test]
fn every_recipe_makes_an_image_that_qemu_finds_in_order() {
    for recipe in qcow2() {
        let name = recipe.name.clone();
        let case = recipe.case(as_file).unwrap_or_else(|report| panic!("{name}: {report}"));
        let mut world = World::new();
        let image = (case.setup)(&mut world);
        let verified = (case.verify)(&world, Stage::Closed, Some(&image.content));
        verified.unwrap_or_else(|report| panic!("{name}: {report}"));
    }
}

#[test]
fn a_cluster_that_is_used_but_not_counted_is_an_error_after_a_crash_too() {
    let commands = ["qemu-img create -f qcow2 top.qcow2 1M", "qemu-io -f qcow2 -c 'write 0 64k' top.qcow2"];
    let recipe = Recipe::new("qcow2", "qcow2", "top.qcow2", &commands);
    let spec = |_: &World, path: &str| from_filename(path, Some("qcow2"), WRITABLE).expect("a path");
    let case = recipe.case(spec).expect("QEMU makes it");
    let mut world = World::new();
    (case.setup)(&mut world);
    let mut bytes = world.export("top.qcow2");
    let table = u64::from_be_bytes(bytes[48..56].try_into().expect("eight bytes")) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().expect("eight bytes")) as usize;
    let leaked = {
        let mut bytes = bytes.clone();
        let end = bytes.len().next_multiple_of(65536);
        bytes.resize(end + 65536, 0);
        bytes[block + end / 65536 * 2 + 1] = 1;
        bytes
    };
    world.add_file("top.qcow2", &leaked);
    for verify in [&case.verify, &case.verify_quickly] {
        verify(&world, Stage::Crashed, None).expect("a crash may leak");
        verify(&world, Stage::Closed, None).expect_err("a close may not");
    }
    bytes[block..block + 16].fill(0);
    world.add_file("top.qcow2", &bytes);
    let report = (case.verify)(&world, Stage::Crashed, None).expect_err("corrupt");
    assert!(report.contains("qemu-img check of top.qcow2 ended with 2"), "{report}");
    let report = (case.verify_quickly)(&world, Stage::Crashed, None).expect_err("corrupt");
    assert!(report.contains("our check: CheckReport { corruptions: "), "{report}");
}

#[test]
fn what_the_guest_read_must_be_what_qemu_reads() {
    let commands =
        ["qemu-img create -f qcow2 top.qcow2 1M", "qemu-io -f qcow2 -c 'write -P 3 0 64k' top.qcow2"];
    let case = Recipe::new("qcow2", "qcow2", "top.qcow2", &commands).case(as_file).expect("QEMU makes it");
    let mut world = World::new();
    let mut image = (case.setup)(&mut world);
    (case.verify)(&world, Stage::Closed, Some(&image.content)).expect("the same");
    image.content.write(70_000, &[1]);
    (case.verify)(&world, Stage::Closed, Some(&image.content)).expect_err("one byte differs");
    let report = Run::new(&case, 1).clean().expect_err("a qcow2 file is no raw image");
    assert!(report.contains("case qcow2, seed 1"), "{report}");
}

#[test]
fn files_are_saved_with_their_holes() {
    let mut world = World::new();
    world.add_disk(
        "big.raw",
        world.default_config.clone(),
        drystone_conformance::sparse::Sparse::new(1 << 40),
    );
    let folder = Folder::of(&world).expect("the host takes it");
    let map = folder.run(&["qemu-img", "map", "--output=json", "-f", "raw", "big.raw"]).expect("maps");
    assert!(map.contains(r#""length": 1099511627776"#) && map.contains(r#""data": false"#), "{map}");
    let mut here = World::new();
    here.folder = format!("{}/", folder.path().display());
    let path = here.path("small.raw");
    here.add_file(&path, &[5; 1000]);
    here.save().expect("saves");
    assert_eq!(std::fs::read(path).expect("it is there"), [5; 1000]);
}
