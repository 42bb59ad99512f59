//! Tokens to values.
//!
//! The reference collects tokens until brackets balance and only then looks at their grammar, so a stray character
//! later in the text is reported before a grammar error earlier in it; so it is here.

use serde_json::{Map, Number, Value};

use super::lexer::{Token, next_token};

/// How deep lists and maps may nest.
const DEPTH_MAX: usize = 1024;

/// Text that is not one JSON value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// There is no value at all.
    #[error("Expecting a JSON value")]
    Empty,
    /// Something follows the value.
    #[error("Expecting at most one JSON value")]
    Trailing,
    /// Lists and maps nest too deeply.
    #[error("JSON nesting depth limit exceeded")]
    TooDeep,
    /// The text ends inside a value.
    #[error("JSON parse error, premature EOI")]
    Premature,
    /// Characters that no token starts with.
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    /// A word that is none of `true`, `false`, `null`.
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    /// A bracket or separator stands where a value should.
    #[error("JSON parse error, expecting value")]
    ExpectedValue,
    /// A map's key is not a string.
    #[error("JSON parse error, key is not a string in object")]
    Key,
    /// A map's key has no colon after it.
    #[error("JSON parse error, missing : in object pair")]
    MissingColon,
    /// A key occurs twice in a map.
    #[error("JSON parse error, duplicate key")]
    DuplicateKey,
    /// Two members of a map without a comma between them.
    #[error("JSON parse error, expected separator in dict")]
    MapSeparator,
    /// Two items of a list without a comma between them.
    #[error("JSON parse error, expected separator in list")]
    ListSeparator,
    /// An escape that does not exist.
    #[error("JSON parse error, invalid escape sequence in string")]
    Escape,
    /// A `\u` escape that is no character.
    #[error("JSON parse error, {0} is not a valid Unicode character")]
    Unicode(String),
}

/// Parses exactly one JSON value.
///
/// Strings may be in single quotes. Numbers become signed or unsigned 64-bit integers when they fit, else floats.
///
/// # Errors
/// [`JsonError`], in the words of the reference.
pub fn parse(text: &str) -> Result<Value, JsonError> {
    let mut rest = text;
    let mut parsed = None;
    while let Some(tokens) = next_message(&mut rest) {
        if parsed.is_some() {
            return Err(JsonError::Trailing);
        }
        let tokens = tokens?;
        parsed = Some(Reader { tokens: &tokens }.value()?);
    }
    parsed.ok_or(JsonError::Empty)
}

/// Collects tokens until brackets balance or the text ends; `None` when there are no more.
fn next_message<'a>(rest: &mut &'a str) -> Option<Result<Vec<Token<'a>>, JsonError>> {
    let mut tokens = Vec::new();
    let (mut braces, mut brackets) = (0_i64, 0_i64);
    while let Some(token) = next_token(rest) {
        match token {
            Token::Stray(text) => return Some(Err(JsonError::Stray(text.to_owned()))),
            Token::Mark(b'{') => braces += 1,
            Token::Mark(b'}') => braces -= 1,
            Token::Mark(b'[') => brackets += 1,
            Token::Mark(b']') => brackets -= 1,
            _ => {}
        }
        tokens.push(token);
        if braces + brackets > DEPTH_MAX as i64 {
            return Some(Err(JsonError::TooDeep));
        }
        if braces < 0 || brackets < 0 || (braces == 0 && brackets == 0) {
            break;
        }
    }
    (!tokens.is_empty()).then_some(Ok(tokens))
}

struct Reader<'t, 'a> {
    tokens: &'t [Token<'a>],
}

impl<'a> Reader<'_, 'a> {
    fn next(&mut self) -> Result<Token<'a>, JsonError> {
        let (first, rest) = self.tokens.split_first().ok_or(JsonError::Premature)?;
        self.tokens = rest;
        Ok(*first)
    }

    fn next_if(&mut self, mark: u8) -> Result<bool, JsonError> {
        let found = *self.tokens.first().ok_or(JsonError::Premature)? == Token::Mark(mark);
        if found {
            self.tokens = &self.tokens[1..];
        }
        Ok(found)
    }

    /// Nesting is bounded by [`next_message`], so recursion is too.
    fn value(&mut self) -> Result<Value, JsonError> {
        match self.next()? {
            Token::Mark(b'{') => self.map(),
            Token::Mark(b'[') => self.list(),
            Token::Text(text) => unquote(text).map(Value::String),
            Token::Integer(text) => Ok(integer(text)),
            Token::Float(text) => Ok(float(text)),
            Token::Word("true") => Ok(Value::Bool(true)),
            Token::Word("false") => Ok(Value::Bool(false)),
            Token::Word("null") => Ok(Value::Null),
            Token::Word(word) => Err(JsonError::Keyword(word.to_owned())),
            Token::Mark(_) | Token::Stray(_) => Err(JsonError::ExpectedValue),
        }
    }

    fn map(&mut self) -> Result<Value, JsonError> {
        let mut members = Map::new();
        if self.next_if(b'}')? {
            return Ok(Value::Object(members));
        }
        loop {
            let Value::String(key) = self.value()? else { return Err(JsonError::Key) };
            if !self.next_if(b':')? {
                return Err(JsonError::MissingColon);
            }
            let value = self.value()?;
            if members.insert(key, value).is_some() {
                return Err(JsonError::DuplicateKey);
            }
            if self.next_if(b'}')? {
                return Ok(Value::Object(members));
            }
            if !self.next_if(b',')? {
                return Err(JsonError::MapSeparator);
            }
        }
    }

    fn list(&mut self) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        if self.next_if(b']')? {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.next_if(b']')? {
                return Ok(Value::Array(items));
            }
            if !self.next_if(b',')? {
                return Err(JsonError::ListSeparator);
            }
        }
    }
}

fn integer(text: &str) -> Value {
    let signed = text.parse::<i64>().map(Value::from);
    signed.or_else(|_| text.parse::<u64>().map(Value::from)).unwrap_or_else(|_| float(text))
}

/// A float; one that is too large for the type becomes the largest, as JSON knows no infinity.
fn float(text: &str) -> Value {
    let number = text.parse::<f64>().expect("the lexer lets only numbers through");
    Number::from_f64(number.clamp(f64::MIN, f64::MAX)).expect("a clamped number is finite").into()
}

fn unquote(quoted: &str) -> Result<String, JsonError> {
    let mut text = String::with_capacity(quoted.len());
    let mut rest = &quoted[1..quoted.len() - 1];
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let escape = &rest[at..];
        let plain = match escape.as_bytes()[1] {
            b'u' => {
                // What is shown of a bad escape may include the closing quote, so look at the whole token.
                let start = quoted.len() - 1 - escape.len();
                let (character, len) = unicode_escape(&quoted[start..])?;
                text.push(character);
                rest = &escape[len..];
                continue;
            }
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            same @ (b'"' | b'\'' | b'\\' | b'/') => char::from(same),
            _ => return Err(JsonError::Escape),
        };
        text.push(plain);
        rest = &escape[2..];
    }
    text.push_str(rest);
    Ok(text)
}

/// Reads `\uXXXX`, or two of them for a character beyond 16 bits; returns the character and the length of its spelling.
fn unicode_escape(text: &str) -> Result<(char, usize), JsonError> {
    let bad = || JsonError::Unicode(text.chars().take(6).collect());
    let first = code_unit(text).ok_or_else(bad)?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 6));
    }
    let second =
        text.get(6..).and_then(code_unit).filter(|unit| (0xdc00..0xe000).contains(unit)).ok_or_else(bad)?;
    if first >= 0xdc00 {
        return Err(bad());
    }
    let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    char::from_u32(code).map(|character| (character, 12)).ok_or_else(bad)
}

fn code_unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_read() {
        check(
            "{'a': [1, -2, 18446744073709551615, 1.5, 1e3], \"b\": {}, 'c': [] }",
            json!({"a": [1, -2, u64::MAX, 1.5, 1000.0], "b": {}, "c": []}),
        );
        check(
            r#"["\u0041\ud834\udd1e\/\b\f\n\r\t\"\\", '"\'', "\'"]"#,
            json!(["A𝄞/\u{8}\u{c}\n\r\t\"\\", "\"'", "'"]),
        );
        check("[null, true, false]", json!([null, true, false]));
        check("99999999999999999999", json!(1e20));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(parse(&nested(DEPTH_MAX + 1)), Err(JsonError::TooDeep));
    }

    fn check(text: &str, expected: Value) {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }
}
