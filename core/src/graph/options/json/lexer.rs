//! Cuts JSON text into tokens.

/// One token; strings and numbers keep their spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// One of `{}[]:,`.
    Mark(u8),
    /// With its quotes and escapes.
    Text(&'a str),
    Integer(&'a str),
    Float(&'a str),
    /// A run of lower-case letters.
    Word(&'a str),
    /// What no token starts with, up to and including the character that did not fit.
    Stray(&'a str),
}

/// Takes the next token from `rest`; `None` when only white space is left.
pub(super) fn next_token<'a>(rest: &mut &'a str) -> Option<Token<'a>> {
    *rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
    let first = rest.chars().next()?;
    let (len, make): (usize, fn(&'a str) -> Token<'a>) = match first {
        '{' | '}' | '[' | ']' | ':' | ',' => (1, |text| Token::Mark(text.as_bytes()[0])),
        '"' | '\'' => string_len(rest, first),
        '-' | '0'..='9' => number_len(rest),
        'a'..='z' => (rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len()), Token::Word),
        other => (other.len_utf8(), Token::Stray),
    };
    let (token, after) = rest.split_at(len);
    *rest = after;
    Some(make(token))
}

type Measured<'a> = (usize, fn(&'a str) -> Token<'a>);

fn string_len<'a>(text: &str, quote: char) -> Measured<'a> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if c < ' ' => return (at + 1, Token::Stray),
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return (at + 1, Token::Text),
            _ => {}
        }
    }
    (text.len(), Token::Stray)
}

/// `-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`
fn number_len<'a>(text: &str) -> Measured<'a> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let stray = |at: usize| {
        let len = text[at..].chars().next().map_or(0, char::len_utf8);
        (at + len, Token::Stray as fn(&'a str) -> Token<'a>)
    };

    let mut at = usize::from(bytes[0] == b'-');
    match digits(at) {
        0 => return stray(at),
        n if n > 1 && bytes[at] == b'0' => return stray(at + 1),
        n => at += n,
    }
    let mut make: fn(&'a str) -> Token<'a> = Token::Integer;
    if bytes.get(at) == Some(&b'.') {
        match digits(at + 1) {
            0 => return stray(at + 1),
            n => at += 1 + n,
        }
        make = Token::Float;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        match digits(at) {
            0 => return stray(at),
            n => at += n,
        }
        make = Token::Float;
    }
    (at, make)
}
