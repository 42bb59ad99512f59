//! Completions and manual pages: what the programs that read them say of them, and that they leave nothing out.

mod side;

use std::process::Command;

use side::Side;

const COMMANDS: &[&str] = &[
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map",
    "measure", "rebase", "resize", "snapshot",
];

/// Runs a program, unless it is not installed.
fn run(program: &str, args: &[&str], path: &std::path::Path) -> Option<(bool, String)> {
    match Command::new(program).args(args).arg(path).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("{program} is not installed: it does not look at what is made for it");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn shells_take_their_completions() {
    let side = Side::new();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = side.our_make(&format!("--completions {shell}"));
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        side.write(shell, script.as_bytes());
        if let Some((fine, said)) = run(shell, &[check], &side.path(shell)) {
            assert!(fine && said.is_empty(), "{shell}: {said}");
        }
    }
    let refused = side.ours("--completions tcsh");
    assert_eq!(refused.code, 1);
}

#[test]
fn bash_completes() {
    let side = Side::new();
    side.write("script", side.our_make("--completions bash").as_bytes());
    for (words, expected) in [
        ("qemu-img com", "commit compare"),
        ("qemu-img rebase --backing-u", "--backing-unsafe"),
        ("qemu-img map --output s", "svg"),
        ("qemu-img -T x info --exec", ""),
        ("qemu-img info --inspe", "--inspect"),
        ("qemu-img info scr", "script"),
    ] {
        let count = words.split(' ').count() - 1;
        let line = format!(
            ". ./script; COMP_WORDS=({words}); COMP_CWORD={count}; _qemu_img; echo ${{COMPREPLY[*]}}"
        );
        let mut command = Command::new("bash");
        let output = command.args(["-c", &line]).current_dir(side.path("")).output().expect("bash runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{words}: {output:?}");
    }
}

#[test]
fn the_manual_page_is_well_formed() {
    let side = Side::new();
    let page = side.our_make("--man");
    for command in COMMANDS {
        assert!(page.contains(&format!(".SS {command}\n")), "{command}");
        let help = side.our_make(&format!("{command} --help"));
        let words = help.split_whitespace().filter_map(|word| word.strip_prefix("--"));
        let options = words.map(|word| word.split('=').next().unwrap_or_default());
        for option in options.map(|word| word.trim_end_matches([',', ';', ':', '.'])) {
            assert!(page.contains(&option.replace('-', "\\-")), "{command}: {option}");
        }
    }
    side.write("page.1", page.as_bytes());
    for (program, args) in [
        ("groff", &["-man", "-Tascii", "-ww", "-z"][..]),
        ("mandoc", &["-Tlint", "-Wwarning"]),
        ("man", &["--warnings", "-E", "UTF-8", "-l"]),
    ] {
        if let Some((fine, said)) = run(program, args, &side.path("page.1")) {
            let warnings: Vec<_> =
                said.lines().filter(|line| line.contains("warning") || line.contains("ERROR")).collect();
            assert!(fine && warnings.is_empty(), "{program}: {warnings:?}");
        }
    }
}

/// The other tools have the same, from their own tables.
#[test]
fn every_tool_has_completions_and_a_page() {
    let side = Side::new();
    for (tool, program, reference) in [
        ("drystone-io", env!("CARGO_BIN_EXE_drystone-io"), "qemu-io"),
        ("drystone-nbd", env!("CARGO_BIN_EXE_drystone-nbd"), "qemu-nbd"),
    ] {
        let said = |args: &[&str]| {
            let output = Command::new(program).args(args).output().expect("our own tool runs");
            assert!(output.status.success(), "{tool} {args:?}: {output:?}");
            String::from_utf8(output.stdout).expect("text")
        };
        let (help, page) = (said(&["--help"]), said(&["--man"]));
        assert!(page.contains(&format!("BR {} (1)", reference.replace('-', "\\-"))), "{tool}");
        let names = help.split_whitespace().filter_map(|word| word.strip_prefix("--"));
        let names: Vec<_> = names.map(|name| name.trim_end_matches([',', '.', ';', ':'])).collect();
        assert!(names.len() > 15, "{tool}: {help}");
        for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
            let script = said(&["--completions", shell]);
            for name in names.iter().map(|name| name.split('=').next().unwrap_or_default()) {
                let dashed = if shell == "fish" { format!("-l {name}") } else { format!("--{name}") };
                assert!(script.contains(&dashed), "{tool}, {shell}: {name}");
                assert!(page.contains(&name.replace('-', "\\-")), "{tool}: {name}");
            }
            side.write(shell, script.as_bytes());
            if let Some((fine, said)) = run(shell, &[check], &side.path(shell)) {
                assert!(fine && said.is_empty(), "{tool}, {shell}: {said}");
            }
        }
        side.write("page.1", page.as_bytes());
        if let Some((fine, said)) = run("man", &["--warnings", "-E", "UTF-8", "-l"], &side.path("page.1")) {
            assert!(fine && !said.contains("warning"), "{tool}: {said}");
        }
        let function = tool.replace('-', "_");
        let line = format!(
            ". ./bash; COMP_WORDS=({tool} --image-n); COMP_CWORD=1; _{function}; echo ${{COMPREPLY[*]}}"
        );
        let output =
            Command::new("bash").args(["-c", &line]).current_dir(side.path("")).output().expect("bash runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--image-names", "{tool}: {output:?}");
    }
}
