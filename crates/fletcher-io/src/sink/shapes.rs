//! What values some JSON objects hold, and the Arrow types that hold these values as they are.
//!
//! A column of numbers gets a type that keeps each of them: one of whole numbers beyond 2^53 is
//! never `Float64`, whose 53 digits would change identifiers and hashes without a word. So numbers
//! are looked at as they are written: a parser that makes them `f64` has rounded them already.

use std::borrow::Cow;
use std::fmt;

use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The values seen in one place.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// None but nulls.
    Null,
    Boolean,
    Number(Numbers),
    /// Texts, or scalars of several kinds.
    Text,
    List(Box<Shape>),
    /// Keys in order of appearance.
    Object(Vec<(String, Shape)>),
}

/// Which numbers were seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Numbers {
    negative: bool,
    /// A whole number above those of `Int64`.
    above_i64: bool,
    /// A number that is none of `Float64`'s, the nearest of which is not meant.
    beyond_f64: bool,
    /// A whole number that is neither of `Int64` nor of `UInt64`.
    beyond_64_bits: bool,
    fraction: bool,
}

/// A JSON number as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Written {
    /// Digits alone, perhaps after a minus.
    Whole(i128),
    /// More digits than that.
    Long,
    /// With a fraction or an exponent, or -0, as the nearest `f64`: what such a number means to
    /// everybody who reads JSON.
    Fraction(f64),
    /// The same beyond the largest `f64`.
    Huge,
}

impl Written {
    /// `None` for what is no number.
    pub(super) fn of(text: &str) -> Option<Self> {
        if !text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            return None;
        }
        if text == "-0" || text.contains(['.', 'e', 'E']) {
            let nearest: f64 = text.parse().ok()?;
            return Some(if nearest.is_finite() { Self::Fraction(nearest) } else { Self::Huge });
        }
        Some(text.parse().map_or(Self::Long, Self::Whole))
    }
}

/// How deep lists and objects may stand in each other, as in `serde_json`.
const MAX_DEPTH: usize = 128;

impl Shape {
    /// The shape of a value as it is written; `None` where it is nested too deeply.
    pub(super) fn of(value: &str) -> Option<Self> {
        Self::at_depth(value, MAX_DEPTH)
    }

    fn at_depth(value: &str, depth: usize) -> Option<Self> {
        let value = value.trim_ascii();
        let depth = depth.checked_sub(1)?;
        let inner = |value: &&RawValue| Self::at_depth(value.get(), depth);
        Some(match value.as_bytes().first()? {
            b'n' => Self::Null,
            b't' | b'f' => Self::Boolean,
            b'"' => Self::Text,
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(value).ok()?;
                let shapes = items.iter().map(inner).collect::<Option<Vec<_>>>()?;
                Self::List(Box::new(shapes.into_iter().fold(Self::Null, Self::and)))
            }
            b'{' => {
                let entries: Entries<'_> = serde_json::from_str(value).ok()?;
                let mut fields: Vec<(String, Self)> = Vec::with_capacity(entries.0.len());
                for (name, value) in &entries.0 {
                    let shape = inner(value)?;
                    // Of a key that is repeated the last value counts.
                    match fields.iter_mut().find(|(known, _)| known == name) {
                        Some((_, known)) => *known = shape,
                        None => fields.push((name.clone().into_owned(), shape)),
                    }
                }
                Self::Object(fields)
            }
            _ => Self::Number(Numbers::of(Written::of(value)?)),
        })
    }

    /// The shape of the values of two. Where there is none (an object and a scalar) the first
    /// stays, and the other's rows do not fit.
    pub(super) fn and(self, other: Self) -> Self {
        use Shape::{List, Null, Number, Object, Text};
        match (self, other) {
            (a, b) if a == b => a,
            (a, Null) => a,
            (Null, b) => b,
            (Number(a), Number(b)) => Number(a.and(b)),
            (List(a), List(b)) => List(Box::new(a.and(*b))),
            (Object(mut fields), Object(others)) => {
                for (name, other) in others {
                    match fields.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, known)) => *known = std::mem::replace(known, Null).and(other),
                        None => fields.push((name, other)),
                    }
                }
                Object(fields)
            }
            (a @ (List(_) | Object(_)), _) => a,
            (a, List(_) | Object(_)) => a,
            _ => Text,
        }
    }

    /// The type for such values; what showed no value is `Utf8`.
    pub(super) fn data_type(&self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Number(numbers) => numbers.data_type(),
            Self::Null | Self::Text => DataType::Utf8,
            Self::List(item) => DataType::new_list(item.data_type(), true),
            Self::Object(fields) => DataType::Struct(
                fields
                    .iter()
                    .map(|(name, shape)| nullable(name, shape.data_type()))
                    .collect::<Fields>(),
            ),
        }
    }
}

impl Numbers {
    fn of(number: Written) -> Self {
        match number {
            Written::Whole(whole) => Self {
                negative: whole < 0,
                above_i64: whole > i64::MAX.into(),
                beyond_f64: !is_double(whole),
                beyond_64_bits: whole < i64::MIN.into() || whole > u64::MAX.into(),
                fraction: false,
            },
            Written::Long => Self { beyond_f64: true, beyond_64_bits: true, ..Self::default() },
            Written::Fraction(_) => Self { fraction: true, ..Self::default() },
            Written::Huge => Self { fraction: true, beyond_f64: true, ..Self::default() },
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            negative: self.negative || other.negative,
            above_i64: self.above_i64 || other.above_i64,
            beyond_f64: self.beyond_f64 || other.beyond_f64,
            beyond_64_bits: self.beyond_64_bits || other.beyond_64_bits,
            fraction: self.fraction || other.fraction,
        }
    }

    /// The type that holds all of them; `Utf8`, as they are written, where none does.
    fn data_type(self) -> DataType {
        match self {
            Self { fraction: true, beyond_f64: true, .. } => DataType::Utf8,
            Self { fraction: true, .. } => DataType::Float64,
            Self { beyond_64_bits: true, .. } => DataType::Utf8,
            Self { above_i64: true, negative: true, .. } => DataType::Utf8,
            Self { above_i64: true, .. } => DataType::UInt64,
            _ => DataType::Int64,
        }
    }
}

/// Whether `Float64` has this whole number.
pub(super) fn is_double(whole: i128) -> bool {
    (whole as f64) as i128 == whole
}

pub(super) fn nullable(name: &str, data_type: DataType) -> FieldRef {
    std::sync::Arc::new(Field::new(name, data_type, true))
}

/// An object's entries as they are written, in order.
pub(super) struct Entries<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

/// A key, borrowed unless it holds an escape.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Key(name), value)) = map.next_entry()? {
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_a_type_that_keeps_them_or_stay_as_written() {
        for (values, wanted) in [
            ("[1,-2]", DataType::Int64),
            ("[9223372036854775808]", DataType::UInt64),
            ("[9223372036854775808,-1]", DataType::Utf8),
            ("[18446744073709551616]", DataType::Utf8),
            ("[-9223372036854775809]", DataType::Utf8),
            // A double has it, and still it is an identifier beside others.
            ("[36893488147419103232]", DataType::Utf8),
            ("[1000000000000000000000000000000000000000000000001]", DataType::Utf8),
            ("[1e22,3]", DataType::Float64),
            ("[1e300,0.5,-0]", DataType::Float64),
            ("[0.5,9007199254740993]", DataType::Utf8),
            ("[0.5,18446744073709551616]", DataType::Float64),
            ("[0.5,100000000000000000000001]", DataType::Utf8),
            ("[1e400]", DataType::Utf8),
            ("[1,\"a\"]", DataType::Utf8),
        ] {
            let list = Shape::of(values).unwrap().data_type();
            assert_eq!(list, DataType::new_list(wanted, true), "{values}");
        }
    }

    #[test]
    fn of_a_repeated_key_the_last_value_counts() {
        let shape = Shape::of(r#" {"a":"x","b":1,"\u0061":true} "#).unwrap();
        let fields = [("a", Shape::Boolean), ("b", Shape::of("1").unwrap())];
        assert_eq!(shape, Shape::Object(fields.map(|(name, shape)| (name.into(), shape)).into()));
    }

    #[test]
    fn deep_nesting_has_no_shape() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Shape::of(&nested(100)).is_some());
        assert!(Shape::of(&nested(1_000_000)).is_none());
    }
}
