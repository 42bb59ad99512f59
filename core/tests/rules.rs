//! Rules about the code of core itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What does I/O, or runs those who do.
const FORBIDDEN: [&str; 9] =
    ["tokio", "monoio", "glommio", "async-std", "io-uring", "libc", "rustix", "nix", "mio"];

#[test]
fn nothing_below_core_does_io() {
    let args = ["tree", "--package", "drystone-core", "--edges", "normal", "--prefix", "none", "--offline"];
    let tree = Command::new(env!("CARGO")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let tree = tree.expect("cargo runs this test");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("names of crates");
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"drystone-core") && names.contains(&"nom"), "{names:?}");
    let found: Vec<_> = names.iter().filter(|name| FORBIDDEN.contains(name)).collect();
    assert!(
        found.is_empty(),
        "core depends on {found:?}: see `cargo tree -p drystone-core -e normal -i NAME`"
    );
}

/// Where `unsafe` may be: memory that is lent out in windows, and instructions that not every processor has.
const UNSAFE: [&str; 2] = ["buf.rs", "crypto/wide.rs"];

#[test]
fn only_buffers_and_instructions_are_unsafe() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut seen = 0;
    for file in rust_files(&source) {
        let text = fs::read_to_string(&file).expect("source is text");
        seen += usize::from(text.contains("unsafe {"));
        let name = file.strip_prefix(&source).expect("it is below");
        // A lint's name is no use of what it is about.
        let uses = |line: &&str| line.replace("unsafe_code", "").contains("unsafe");
        if !UNSAFE.iter().any(|allowed| name == Path::new(allowed)) {
            found.extend(text.lines().filter(uses).map(|line| format!("{}: {line}", name.display())));
        }
    }
    assert_eq!(seen, UNSAFE.len(), "both have their unsafe blocks, and are found");
    assert!(found.is_empty(), "unsafe elsewhere:\n{}", found.join("\n"));
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
