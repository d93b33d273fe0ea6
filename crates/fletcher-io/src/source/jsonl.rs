//! JSONL: one object a line, kept as written so that a JSONL sink gives it back to the byte.
//!
//! Lines of nothing but white space are no rows: editors and `cat` leave them at joints and ends.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::chunk::{Payload, RowError, RowLocation, RowProblem};
use crate::error::SourceError;
use crate::source::bytes::Bytes;
use crate::source::line_blocks::Block;
use crate::source::line_chunks::LineChunks;
use crate::source::lines::text_of;
use crate::source::{SourceContext, SourceSchema};
use crate::texts::{ObjectsBuilder, Texts, TextsBuilder};

pub(super) fn open(bytes: Bytes, context: SourceContext) -> LineChunks {
    let schema = SourceSchema::Objects { text_column: context.text_column.clone() };
    LineChunks::new(bytes, context, schema, parse)
}

fn parse(block: &Block, context: &SourceContext) -> Result<(Texts, Payload), SourceError> {
    let mut texts = TextsBuilder::with_capacity(block.len(), block.bytes());
    let mut objects = ObjectsBuilder::with_capacity(block.len(), block.bytes());
    for (number, line) in block.lines() {
        let location = RowLocation::Line(number);
        let (text, object) = match text_of(line, location, context.limits.row_bytes) {
            Ok(line) if line.trim_ascii().is_empty() => continue,
            Ok(line) => parse_row(line, &context.text_column, location),
            Err(error) => (Err(error), None),
        };
        match context.admit(text)? {
            Ok(text) => texts.push(Ok(&text)),
            Err(error) => texts.push(Err(error)),
        }
        objects.push(number, object);
    }
    Ok((texts.finish(), Payload::Objects(objects.finish())))
}

/// A line's text, and the line itself if it is an object.
fn parse_row<'a>(
    line: &'a str,
    column: &str,
    location: RowLocation,
) -> (Result<Cow<'a, str>, RowError>, Option<&'a str>) {
    let error = |problem, raw| Err(RowError { location, problem, raw });
    let column_name = || column.to_owned();
    let problem = match text_value(line, column) {
        Ok(Value::Object(Some(Text::String(text)))) => return (Ok(text), Some(line)),
        Ok(Value::Object(Some(Text::Null))) => RowProblem::NullText { column: column_name() },
        Ok(Value::Object(Some(Text::Other(found)))) => {
            RowProblem::WrongType { column: column_name(), found }
        }
        Ok(Value::Object(None)) => RowProblem::MissingText { column: column_name() },
        Ok(Value::Other(found)) => {
            let raw = Some(line.to_owned());
            return (error(RowProblem::NotAnObject { found }, raw), None);
        }
        Err(e) => {
            let (message, raw) = (complaint(&e), Some(line.to_owned()));
            return (error(RowProblem::MalformedJson { message }, raw), None);
        }
    };
    (error(problem, None), Some(line))
}

/// serde_json's message without its line number, which is always 1 here and would mislead.
fn complaint(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => message,
    }
}

/// A line's JSON value, as far as this module cares.
enum Value<'a> {
    /// An object, with the value of its text key (the last, should it be repeated).
    Object(Option<Text<'a>>),
    /// Something else.
    Other(&'static str),
}

/// The value of the text key; a string is borrowed unless it holds an escape.
enum Text<'a> {
    String(Cow<'a, str>),
    Null,
    Other(&'static str),
}

/// Checks that a line is JSON and takes out its text, building nothing else.
fn text_value<'a>(line: &'a str, column: &str) -> Result<Value<'a>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let value = deserializer.deserialize_any(RowVisitor { column })?;
    deserializer.end()?;
    Ok(value)
}

struct RowVisitor<'a> {
    column: &'a str,
}

/// The visitor methods of all JSON values that are neither string nor object.
macro_rules! visit_others {
    ($make:expr) => {
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok($make("null"))
        }
        fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok($make("a boolean"))
        }
        fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok($make("a number"))
        }
        fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok($make("a number"))
        }
        fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok($make("a number"))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok($make("an array"))
        }
    };
}

impl<'de> Visitor<'de> for RowVisitor<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Value<'de>, E> {
        Ok(Value::Other("a string"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        let mut text = None;
        while let Some(Key(key)) = map.next_key()? {
            if key == self.column {
                text = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Value::Object(text))
    }

    visit_others!(Value::Other);
}

/// A key, borrowed unless it holds an escape.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text::String(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text::String(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::Other("an object"))
    }

    visit_others!(other);
}

/// A value that is not a string; null has a case of its own.
fn other(found: &'static str) -> Text<'static> {
    if found == "null" { Text::Null } else { Text::Other(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_give_their_text_or_say_why_not() {
        let column = || "text".to_owned();
        let malformed = |message: &str| RowProblem::MalformedJson { message: message.to_owned() };
        let cases = [
            (r#"{"text":"a"}"#, Ok("a")),
            (r#" { "id" : [1,{"text":2}], "text" : "\u00e9\n" } "#, Ok("é\n")),
            (r#"{"t\u0065xt":"escaped key"}"#, Ok("escaped key")),
            (r#"{"n":123456789012345678901234567890.5e-400,"text":"a"}"#, Ok("a")),
            (r#"{"text":null}"#, Err(RowProblem::NullText { column: column() })),
            (r#"{"txt":"a"}"#, Err(RowProblem::MissingText { column: column() })),
            (r#"{}"#, Err(RowProblem::MissingText { column: column() })),
            (r#"{"text":3}"#, Err(RowProblem::WrongType { column: column(), found: "a number" })),
            (
                r#"{"text":["a"]}"#,
                Err(RowProblem::WrongType { column: column(), found: "an array" }),
            ),
            (
                r#"{"text":{"a":1}}"#,
                Err(RowProblem::WrongType { column: column(), found: "an object" }),
            ),
            (r#""a""#, Err(RowProblem::NotAnObject { found: "a string" })),
            ("[1]", Err(RowProblem::NotAnObject { found: "an array" })),
            ("null", Err(RowProblem::NotAnObject { found: "null" })),
            (r#"{"text":"a""#, Err(malformed("EOF while parsing an object at column 11"))),
            (r#"{"text":"a"} x"#, Err(malformed("trailing characters at column 14"))),
            (r#"{"text":"\ud800"}"#, Err(malformed("unexpected end of hex escape at column 16"))),
        ];
        for (line, want) in cases {
            let (text, object) = parse_row(line, "text", RowLocation::Line(3));
            let is_object = !matches!(
                want,
                Err(RowProblem::NotAnObject { .. } | RowProblem::MalformedJson { .. })
            );
            assert_eq!(object.is_some(), is_object, "{line}");
            assert_eq!(text.map_err(|e| e.problem), want.map(Cow::Borrowed), "{line}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_not_an_overflow() {
        let line = format!("{{\"text\":\"a\",\"deep\":{}", "[".repeat(1_000_000));
        let (text, _) = parse_row(&line, "text", RowLocation::Line(1));
        assert!(matches!(text.unwrap_err().problem, RowProblem::MalformedJson { .. }));
    }
}
