//! Whether columns hold a JSON object's numbers as they are.
//!
//! Arrow's JSON reader makes 1 of 1.75 where a column is of whole numbers, 7 of the text "007",
//! and 9007199254740992 of 9007199254740993 where a column is `Float64`. Here these do not fit.
//! Numbers are judged as they are written, since `serde_json` rounds those beyond 64 bits, too.

use std::fmt;

use arrow::datatypes::{DataType, Fields, Schema};
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::sink::shapes::{Written, is_double};

/// Whole numbers up to here are all in `Float64`, so that one written with a fraction or an
/// exponent (`1.0`, `1e3`) is what it says.
const DOUBLE_WHOLE: f64 = (1_u64 << 53) as f64;

/// Says which field's value a column of numbers would change, if there is one.
///
/// # Errors
/// The field, the value and the type, as a message.
pub(super) fn check(schema: &Schema, object: &str) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_str(object);
    let mut problem = None;
    let place = Place { kind: Kind::Object(schema.fields()), field: "", problem: &mut problem };
    // What is no JSON at all is the decoder's to say.
    let _ = place.deserialize(&mut reader);
    problem.map_or(Ok(()), Err)
}

/// Whether such a type has numbers somewhere.
pub(super) fn has_numbers(data_type: &DataType) -> bool {
    match data_type {
        DataType::Int64 | DataType::UInt64 | DataType::Float64 => true,
        DataType::List(item) => has_numbers(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_numbers(field.data_type())),
        _ => false,
    }
}

/// What a place of an object should hold.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Object(&'a Fields),
    List(&'a DataType),
    Number(&'a DataType),
}

impl<'a> Kind<'a> {
    /// `None` for what cannot change a value.
    fn of(data_type: &'a DataType) -> Option<Self> {
        match data_type {
            _ if !has_numbers(data_type) => None,
            DataType::Struct(fields) => Some(Self::Object(fields)),
            DataType::List(item) => Some(Self::List(item.data_type())),
            number => Some(Self::Number(number)),
        }
    }
}

struct Place<'a> {
    kind: Kind<'a>,
    field: &'a str,
    problem: &'a mut Option<String>,
}

/// Whether a column of this type of numbers holds a value that is written so. Objects and lists
/// where a scalar stands are the decoder's to refuse.
fn holds(data_type: &DataType, value: &str) -> bool {
    let Some(number) = Written::of(value) else {
        // A text would be parsed, and "007" become 7.
        return !value.starts_with('"');
    };
    match (number, data_type) {
        (Written::Whole(whole), DataType::Float64) => is_double(whole),
        (Written::Whole(whole), DataType::UInt64) => u64::try_from(whole).is_ok(),
        (Written::Whole(whole), _) => i64::try_from(whole).is_ok(),
        (Written::Fraction(_), DataType::Float64) => true,
        (Written::Fraction(number), _) => number.fract() == 0.0 && number.abs() <= DOUBLE_WHOLE,
        (Written::Long | Written::Huge, _) => false,
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Kind::Number(data_type) = self.kind else { return deserializer.deserialize_any(self) };
        // As it is written: a number that was parsed may have been rounded.
        let value = <&RawValue>::deserialize(deserializer)?.get();
        if holds(data_type, value) {
            return Ok(());
        }
        let (field, what) = (self.field, if value.starts_with('"') { "the text " } else { "" });
        *self.problem = Some(format!("field '{field}': {what}{value} would change as {data_type}"));
        Err(D::Error::custom("does not fit"))
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { kind, field, problem } = self;
        let kind = match kind {
            Kind::List(item) => Kind::of(item),
            Kind::Object(_) | Kind::Number(_) => None,
        };
        match kind {
            Some(kind) => {
                while items.next_element_seed(Place { kind, field, problem })?.is_some() {}
            }
            None => while items.next_element::<IgnoredAny>()?.is_some() {},
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Self { kind, problem, .. } = self;
        while let Some(name) = entries.next_key::<std::borrow::Cow<'de, str>>()? {
            let field = match kind {
                Kind::Object(fields) => fields.iter().find(|field| *field.name() == name),
                Kind::List(_) | Kind::Number(_) => None,
            };
            match field.and_then(|field| Some((field.name(), Kind::of(field.data_type())?))) {
                Some((field, kind)) => {
                    entries.next_value_seed(Place { kind, field, problem })?;
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
