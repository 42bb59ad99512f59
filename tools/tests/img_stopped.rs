//! How commands end that fail on their way, beside the installed `qemu-img`: the same first line, exit code and target.
//! What we know besides stands on further lines.

mod side;

use side::{Run, Side, disk};

/// Without the lines that follow the first, and those of the reference's own that name no tool.
fn first_line(mut run: Run) -> Run {
    let line = run.stderr.lines().find(|line| line.starts_with("qemu-img: "));
    run.stderr = line.unwrap_or_default().to_owned();
    run
}

fn expect_alike(side: &mut Side, about: &str, line: &str, before: impl Fn(&Side)) {
    before(side);
    let theirs = first_line(side.theirs(line));
    before(side);
    let ours = first_line(side.ours(line));
    side.expect_alike(&format!("{about}: {line}"), &ours, &theirs);
}

#[test]
fn compressed_data_replaces_nothing() {
    let mut side = Side::new();
    side.write("noise", &noise(1 << 20));
    side.write("text", &[b'x'; 1 << 20]);
    side.write("mixed", &[noise(1 << 19), vec![b'x'; 1 << 19]].concat());
    let targets: &[(&str, &str)] = &[
        ("none", ""),
        ("first", "write -P 1 0 64k"),
        ("fifth", "write -P 1 256k 64k"),
        ("zeros", "write -z 256k 64k"),
        ("kept zeros", "write -P 1 256k 64k; write -z 256k 64k"),
        ("given up", "write -P 1 256k 64k; discard 256k 64k"),
        ("all", "write -P 1 0 1M"),
        ("packed", "write -c -P 1 640k 64k"),
    ];
    for (about, writes) in targets {
        for source in ["noise", "text", "mixed"] {
            let make = |side: &Side| {
                side.remove("target");
                side.make("create -q -f qcow2 target 1M");
                if !writes.is_empty() {
                    side.io("target", writes);
                }
            };
            let line = format!("convert -n -c -m 1 -f raw -O qcow2 {source} target");
            expect_alike(&mut side, about, &line, make);
            side.make("check -q target");
        }
    }
    side.finish();
}

/// Bytes that no codec shortens.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

#[test]
fn damaged_images_end_commands_alike() {
    let mut side = Side::new();
    side.write("full", &disk(1 << 20, 3));
    side.make("convert -f raw -O qcow2 -S 0 full image");
    let mut bytes = side.read("image");
    // The first L2 entry names a cluster at no multiple of the cluster size.
    bytes[0x40000..0x40008].copy_from_slice(&0x8000_0000_0005_0200_u64.to_be_bytes());
    side.write("damaged", &bytes);
    for line in [
        "convert -O raw damaged out",
        "convert -O qcow2 damaged out",
        "compare damaged full",
        "compare full damaged",
        "compare -s full damaged",
        "map damaged",
        "map --output=json damaged",
        "bench -c 10 damaged",
    ] {
        expect_alike(&mut side, "damaged", line, |side| side.write("damaged", &bytes));
    }
    side.finish();
}
