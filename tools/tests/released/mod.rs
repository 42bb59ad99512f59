//! Debian's build of the reference words some mistakes differently from the release that it is made of.

/// Debian's words to those of the release.
pub fn as_released(stderr: &str) -> String {
    let mut text = String::new();
    for line in stderr.lines() {
        if line.starts_with("Try 'qemu-img") {
            if !text.contains("--output must be") {
                text += "Try 'qemu-img --help' for more information\n";
            }
            continue;
        }
        text += &released_line(line);
        text.push('\n');
    }
    text
}

fn released_line(line: &str) -> String {
    let quoted = |text: &str| text.split('\'').nth(1).unwrap_or_default().to_owned();
    // The command's name stands in front of what getopt itself says.
    let said = match line.strip_prefix("qemu-img").and_then(|rest| rest.split_once(": ")) {
        Some((_, said)) => said,
        None => return line.to_owned(),
    };
    let bench = ["request count", "queue depth", "pattern byte", "flush interval"];
    let plain = if said.starts_with("invalid option -- ") {
        format!("unrecognized option '-{}'", quoted(said))
    } else if said.contains("is ambiguous") {
        format!("unrecognized option '{}'", quoted(said))
    } else if said.starts_with("option requires an argument -- ") {
        format!("missing argument for option '-{}'", quoted(said))
    } else if said.starts_with("option '") {
        format!("missing argument for option '{}'", quoted(said))
    } else if said.starts_with("--output expects") {
        "--output must be used with human or json as argument.".into()
    } else if said.starts_with("--repair (-r) expects") {
        let value = said.rsplit('\'').nth(1).unwrap_or_default();
        format!("Unknown option value for -r (expecting 'leaks' or 'all'): {value}")
    } else if said.starts_with("Invalid number of coroutines") {
        "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16".into()
    } else if said == "Expecting image file name and size" {
        "Not enough arguments".into()
    } else if said == "Extra argument(s) in command line" {
        "Expecting image file name and size".into()
    } else if let Some(what) =
        bench.iter().find(|what| said.starts_with(&format!("Invalid {what} specified")))
    {
        format!("Invalid {what} specified")
    } else if let Some((what, _)) = said.split_once(" specified: '") {
        format!(
            "{what} specified. You may use k, M, G, T, P or E suffixes for\n\
             qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        )
    } else {
        said.to_owned()
    };
    format!("qemu-img: {plain}")
}
