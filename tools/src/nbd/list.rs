//! What `-L` prints.

use std::fmt::Write as _;

use drystone_core::protocol::nbd::Mode;
use drystone_core::protocol::nbd::client::Listing;
use drystone_core::protocol::nbd::layout::TransmissionFlags as Flags;

/// The flags that have a word, in the order of their bits.
const WORDS: [(Flags, &str); 12] = [
    (Flags::READ_ONLY, "readonly"),
    (Flags::SEND_FLUSH, "flush"),
    (Flags::SEND_FUA, "fua"),
    (Flags::ROTATIONAL, "rotational"),
    (Flags::SEND_TRIM, "trim"),
    (Flags::SEND_WRITE_ZEROES, "zeroes"),
    (Flags::SEND_DF, "df"),
    (Flags::CAN_MULTI_CONN, "multi"),
    (Flags::SEND_RESIZE, "resize"),
    (Flags::SEND_CACHE, "cache"),
    (Flags::SEND_FAST_ZERO, "fast-zero"),
    (Flags::BLOCK_STATUS_PAYLOAD, "block-status-payload"),
];

/// The exports of a server.
#[must_use]
pub fn render(exports: &[Listing]) -> String {
    let mut text = format!("exports available: {}\n", exports.len());
    for export in exports {
        describe(&mut text, export).expect("writing to a string does not fail");
    }
    text
}

fn describe(text: &mut String, export: &Listing) -> std::fmt::Result {
    writeln!(text, " export: '{}'", export.name)?;
    if let Some(description) = export.description.as_deref().filter(|words| !words.is_empty()) {
        writeln!(text, "  description: {description}")?;
    }
    let Some((len, flags)) = export.about else { return Ok(()) };
    writeln!(text, "  size:  {len}")?;
    if flags.has(Flags::HAS_FLAGS) {
        write!(text, "  flags: {:#x} (", flags.0)?;
        for (_, word) in WORDS.iter().filter(|(flag, _)| flags.has(*flag)) {
            write!(text, " {word}")?;
        }
        writeln!(text, " )")?;
    }
    if let Some(sizes) = export.sizes {
        writeln!(text, "  min block: {}", sizes.min)?;
        writeln!(text, "  opt block: {}", sizes.preferred)?;
        writeln!(text, "  max block: {}", sizes.max)?;
    }
    let width = if export.mode == Mode::Extended { 64 } else { 32 };
    writeln!(text, "  transaction size: {width}-bit")?;
    if !export.contexts.is_empty() {
        writeln!(text, "  available meta contexts: {}", export.contexts.len())?;
        export.contexts.iter().try_for_each(|context| writeln!(text, "   {context}"))?;
    }
    Ok(())
}
