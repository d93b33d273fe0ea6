//! Requests in JSON, and what is wrong with one in the words of JSON and of its dialect: which
//! field, what it should be, what it is. serde's own messages name Rust's types.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::error::RequestError;

/// Most characters of a message; one may quote a text of a megabyte.
const MESSAGE_CHARS: usize = 300;

/// A request out of its JSON object. `what` is what errors call it.
pub(crate) fn parse<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, RequestError> {
    // A list would be taken for an object's values in the order of the fields.
    let is_object = json.trim_ascii_start().starts_with(b"{");
    match serde_json::from_slice(json) {
        Ok(request) if is_object => Ok(request),
        Ok(_) => Err(RequestError::invalid(format!("{what} is JSON, but not an object"))),
        Err(error) => Err(RequestError::invalid(complaint::<T>(what, json, is_object, &error))),
    }
}

fn complaint<T: DeserializeOwned>(
    what: &str,
    json: &[u8],
    is_object: bool,
    error: &serde_json::Error,
) -> String {
    if let Err(syntax) = serde_json::from_slice::<IgnoredAny>(json) {
        return format!("{what} is not JSON: {syntax}");
    }
    if !is_object {
        return format!("{what} is JSON, but not an object");
    }
    // Only now: keeping track of the place takes time.
    let mut reader = serde_json::Deserializer::from_slice(json);
    let place = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) if error.path().iter().next().is_some() => format!("`{}`: ", error.path()),
        _ => String::new(),
    };
    let message = match (error.classify(), without_position(&error.to_string())) {
        // So says serde_json where one of several words should stand, which is a string.
        (Category::Syntax, "expected value") => "a string is expected".to_owned(),
        (_, message) => in_json_words(message),
    };
    cut(&format!("{place}{message}"))
}

/// A message of serde in the words of JSON.
pub(crate) fn in_json_words(message: &str) -> String {
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{field} is missing");
    }
    if let Some(field) = message.strip_prefix("duplicate field ") {
        return format!("{field} is given twice");
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        return format!("there is no {rest}");
    }
    // What was found may be a text that says "expected" itself.
    let parts = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|kind| message.strip_prefix(kind)?.rsplit_once(", expected "));
    match parts {
        Some((found, expected)) => {
            cut(&format!("{} is expected, not {}", expectation(expected), cut(&finding(found))))
        }
        None => cut(message),
    }
}

fn expectation(expected: &str) -> &str {
    match expected {
        "a boolean" => "true or false",
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number from 0",
        "isize" | "i64" | "i32" | "i16" | "i8" => "a whole number",
        "f64" | "f32" => "a number",
        "a sequence" | "array" => "a list",
        "str" => "a string",
        "map" | "a map" => "an object",
        _ if expected.starts_with("struct ") => "an object",
        other => other,
    }
}

fn finding(found: &str) -> String {
    let number = ["integer `", "floating point `"].iter().find_map(|kind| found.strip_prefix(kind));
    match found {
        "map" => "an object".to_owned(),
        "sequence" | "array" => "a list".to_owned(),
        _ if number.is_some() => number.unwrap_or_default().trim_end_matches('`').to_owned(),
        _ if found.starts_with("string ") => format!("the {found}"),
        "boolean `true`" => "true".to_owned(),
        "boolean `false`" => "false".to_owned(),
        _ if found.bytes().all(|byte| byte.is_ascii_digit()) => format!("{found} of them"),
        other => other.to_owned(),
    }
}

/// The message without its line and column, which say less than the field.
fn without_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message)
}

/// The beginning of a long message.
fn cut(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::inputs::JsonInput;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only the errors matter")]
    struct Request {
        input: JsonInput,
        n: Option<u32>,
        flag: Option<bool>,
        word: Option<Word>,
        deep: Option<Vec<Deep>>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only the errors matter")]
    struct Deep {
        x: f64,
        list: Option<Vec<String>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Float,
        Base64,
    }

    #[test]
    fn errors_are_in_the_words_of_json() {
        let said = |json: &str| match parse::<Request>("the body", json.as_bytes()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let inputs = "a text, a list of texts, a list of token ids, or a list of such lists";
        for (json, says) in [
            (r#" {"input":"a","n":3} "#, ""),
            ("", "the body is not JSON: EOF while parsing a value at line 1 column 0"),
            (r#"{"input":"a""#, "the body is not JSON: EOF while parsing an object at line 1"),
            (r#"["a",1,true,"float",null]"#, "the body is JSON, but not an object"),
            ("3", "the body is JSON, but not an object"),
            ("{}", "`input` is missing"),
            (r#"{"input":"a","input":"b"}"#, "`input` is given twice"),
            (r#"{"input":3}"#, &format!("`input`: {inputs} is expected, not 3")),
            (r#"{"input":{}}"#, &format!("`input`: {inputs} is expected, not an object")),
            (r#"{"input":null}"#, &format!("`input`: {inputs} is expected, not null")),
            (r#"{"input":["a",null]}"#, "`input[1]`: a text or token ids is expected, not null"),
            (r#"{"input":"a","n":-1}"#, "`n`: a whole number from 0 is expected, not -1"),
            (r#"{"input":"a","n":1.5}"#, "`n`: a whole number from 0 is expected, not 1.5"),
            (r#"{"input":"a","n":"1"}"#, "`n`: a whole number from 0 is expected, not the string"),
            (r#"{"input":"a","flag":"no"}"#, "`flag`: true or false is expected, not the string"),
            (r#"{"input":"a","word":"hex"}"#, "`word`: there is no `hex`, expected `float` or"),
            (r#"{"input":"a","word":5}"#, "`word`: a string is expected"),
            (r#"{"input":"a","word":true}"#, "`word`: a string is expected"),
            (r#"{"input":"a","deep":{}}"#, "`deep`: a list is expected, not an object"),
            (r#"{"input":"a","deep":[7]}"#, "`deep[0]`: an object is expected, not 7"),
            (r#"{"input":"a","deep":[{}]}"#, "`deep[0]`: `x` is missing"),
            (r#"{"input":"a","deep":[{"x":[]}]}"#, "`deep[0].x`: a number is expected, not a list"),
            (r#"{"input":"a","deep":[{"x":1,"list":["a",2]}]}"#, "`deep[0].list[1]`: a string is"),
        ] {
            let said = said(json);
            assert!(said.starts_with(says) && said.is_empty() == says.is_empty(), "{json}: {said}");
        }
        let long = format!(r#"{{"input":"a","n":"{}, expected usize"}}"#, "x".repeat(100_000));
        let said = said(&long);
        assert!(said.starts_with("`n`: a whole number from 0 is expected") && said.len() < 2000);
    }
}
