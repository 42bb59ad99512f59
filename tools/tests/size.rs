//! Sizes, held beside the installed `qemu-img`.

mod reference;

use drystone_tools::size::{SIZE_HINT, SizeError, humanise_exactly, parse_number, parse_size};
use reference::Reference;

#[test]
fn sizes_mean_the_same() {
    let reference = Reference::new();
    for text in [
        "0",
        "1",
        "1b",
        "1B",
        "1k",
        "1K",
        "1M",
        "1.5G",
        "1.5",
        ".5k",
        "0.5",
        "1e3",
        "1e3k",
        "0x10",
        "0x10k",
        "0x",
        "0xg",
        "0x10b",
        "1.",
        "1.k",
        " 1",
        "\t1",
        "1 ",
        "+1",
        "-1",
        "-0",
        "-1k",
        "-1kk",
        "-1.5k",
        "-1.",
        "-x",
        "-0x1",
        "-",
        "+-1",
        "--1",
        "+ 1",
        "1kk",
        "1kb",
        "1KiB",
        "010",
        "1.0001k",
        "0.0001M",
        "1.0b",
        "1.9b",
        "8E",
        "7E",
        "7.99E",
        "7.9999999999999999999E",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551614",
        "18446744073709551616",
        "15.9E",
        "16E",
        "99999999999999999999999",
        "1e",
        "1eE",
        "0x1.8k",
        "0x1p3",
        "inf",
        "nan",
        "",
        "k",
        ".",
        ".k",
        "1_000",
        "1.5e1k",
        "1.1T",
        "0.1E",
        "1.23456789012345G",
        "1T",
        "1P",
        "1t",
        "0xE",
        "0X1e",
        "0xfffffffffffffffe",
        "0x10000000000000000",
        "1.00000000000000000001",
        "1.2.3",
        "0.0k",
        "3.14159265358979k",
        "1.e3",
        "1.5ek",
        "1.5e",
        "15.99999999999999999999E",
        "0.00048828125k",
        "0.000488281249k",
    ] {
        let run = reference.run_args(&["create", "-f", "raw", "-o", &format!("size={text}"), "x"]);
        let run = run.stdout + &run.stderr;
        let shown = match parse_size(text) {
            // The reference keeps the size in a signed number from here on, and -1 means that there is none.
            Ok(size) => format!("Formatting 'x', fmt=raw size={}\n", size as i64),
            Err(SizeError::OutOfRange) => {
                format!("qemu-img: x: Value '{text}' is out of range for parameter 'size'\n")
            }
            Err(SizeError::Malformed) => {
                format!(
                    "qemu-img: x: Parameter 'size' expects a non-negative number below 2^64\n{SIZE_HINT}\n"
                )
            }
        };
        assert!(run.starts_with(&shown), "{text:?}: {run}{shown}");
    }
}

#[test]
fn numbers_mean_the_same() {
    let reference = Reference::new();
    for text in [
        "16",
        "0x10",
        "010",
        "020",
        "+8",
        " 8",
        "8 ",
        "",
        "x",
        "8k",
        "8.0",
        "0x",
        "08",
        "18446744073709551616",
        "-1",
        "--1",
        "0",
        "0x1g",
    ] {
        let run =
            reference.run_args(&["create", "-f", "qcow2", "-o", &format!("refcount_bits={text}"), "x", "1M"]);
        let run = run.stdout + &run.stderr;
        let shown = match parse_number(text) {
            Ok(number) => format!("lazy_refcounts=off refcount_bits={}\n", number as i64),
            Err(SizeError::OutOfRange) => {
                format!("Value '{text}' is too large for parameter 'refcount_bits'\n")
            }
            Err(SizeError::Malformed) => "x: Parameter 'refcount_bits' expects a number\n".to_owned(),
        };
        assert!(run.contains(&shown), "{text:?}: {run}{shown}");
    }
}

#[test]
fn people_read_the_same() {
    let reference = Reference::new();
    let mut sizes = vec![
        0, 512, 1000, 1023, 1024, 10_188, 10_189, 10_240, 102_348, 102_349, 102_400, 1_022_976, 1_023_488,
        1_023_487,
    ];
    for shift in [20, 30, 40, 50] {
        for tenths in [10, 12, 15, 999, 9994, 9995, 9996, 10_000, 10_230, 99_949, 99_951] {
            sizes.push((1_u64 << shift) / 10 * tenths);
        }
    }
    for size in sizes.into_iter().filter(|size| *size < 1 << 62) {
        let list = format!("driver=null-co,read-zeroes=on,size={size}");
        let run = reference.run_args(&["info", "--image-opts", &list]);
        let shown = format!("virtual size: {}\n", humanise_exactly(size.next_multiple_of(512)));
        assert!(run.stdout.contains(&shown), "{size}: {shown}{}{}", run.stdout, run.stderr);
    }
}
