//! What `map` and `compare -s` say of images whose metadata was made ahead of their data, beside the installed
//! `qemu-img`.

mod side;

use std::process::Command;

use side::Side;

/// Images, the writes that each gets, and the host clusters that are punched out of its file afterwards.
const IMAGES: &[(&str, &str, &str, &[u64])] = &[
    ("off", "preallocation=off", "", &[]),
    ("metadata", "preallocation=metadata", "", &[]),
    ("falloc", "preallocation=falloc", "", &[]),
    ("written", "preallocation=metadata", "write -P 1 1M 1M; write -z 3M 128k; discard 512k 64k", &[]),
    ("small", "preallocation=metadata,cluster_size=4k", "write -P 1 1M 100k", &[]),
    ("counts", "preallocation=metadata,refcount_bits=1", "write -P 1 1M 100k", &[]),
    ("apart", "preallocation=metadata,data_file=apart.raw", "write -P 1 64k 64k", &[]),
    ("one", "preallocation=off", "write -P 1 0 2M", &[10]),
    ("three", "preallocation=off", "write -P 1 0 2M", &[10, 12, 13]),
    ("four", "preallocation=off", "write -P 1 0 2M", &[10, 11, 14, 16]),
    ("five", "preallocation=off", "write -P 1 0 2M", &[10, 11, 14, 16, 17]),
    ("end", "preallocation=off", "write -P 1 0 2M; write -P 1 3M 64k", &[10, 11, 14, 16, 17, 36, 37]),
];

#[test]
fn holes_below_preallocated_metadata_are_shown_alike() {
    let mut side = Side::new();
    for (name, options, writes, holes) in IMAGES {
        side.make(&format!("create -q -f qcow2 -o {options} {name} 4M"));
        if !writes.is_empty() {
            side.io(name, writes);
        }
        for hole in *holes {
            let place = ["-p", "-o", &(hole << 16).to_string(), "-l", "65536"];
            let status = Command::new("fallocate").args(place).arg(side.path(name)).status();
            assert!(status.expect("fallocate is there (util-linux)").success());
        }
        side.make(&format!("create -q -f qcow2 -b {name} -F qcow2 {name}.top"));
        side.io(&format!("{name}.top"), "write -P 2 1M 64k");
    }
    for (name, ..) in IMAGES {
        for top in ["", ".top"] {
            for output in ["json", "human"] {
                side.both("map", &format!("map --output={output} {name}{top}"));
            }
        }
        for (other, ..) in IMAGES {
            side.both("strict", &format!("compare -s {name} {other}"));
            side.both("plain", &format!("compare {name} {other}.top"));
        }
    }
    side.finish();
}

#[test]
fn strict_comparisons_see_where_backing_files_end() {
    let mut side = Side::new();
    for line in [
        "create -q -f qcow2 short 64k",
        "create -q -f qcow2 -b short -F qcow2 over 1M",
        "create -q -f qcow2 -b over -F qcow2 twice 2M",
        "create -q -f qcow2 plain 1M",
        "create -q -f qcow2 zeros 1M",
        "create -q -f qcow2 kept 1M",
        "create -q -f raw raw 1M",
    ] {
        side.make(line);
    }
    side.io("zeros", "write -z 64k 960k");
    side.io("kept", "write 64k 64k; write -z 64k 64k");
    let names = ["short", "over", "twice", "plain", "zeros", "kept", "raw"];
    for first in names {
        for second in names {
            side.both("strict", &format!("compare -s {first} {second}"));
            side.both("plain", &format!("compare {first} {second}"));
        }
    }
    side.finish();
}
