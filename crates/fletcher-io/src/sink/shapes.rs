//! What values some JSON objects hold, and the Arrow types that hold these values as they are.
//!
//! A column of numbers gets a type that keeps each of them: one of whole numbers beyond 2^53 is
//! never `Float64`, whose 53 digits would change identifiers and hashes without a word.

use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use serde_json::{Number, Value};

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
    /// A whole number that is none of `Float64`'s.
    beyond_f64: bool,
    fraction: bool,
}

impl Shape {
    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) => Self::Number(Numbers::of(number)),
            Value::String(_) => Self::Text,
            Value::Array(items) => {
                Self::List(Box::new(items.iter().map(Self::of).fold(Self::Null, Self::and)))
            }
            Value::Object(entries) => Self::Object(
                entries.iter().map(|(name, value)| (name.clone(), Self::of(value))).collect(),
            ),
        }
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
    fn of(number: &Number) -> Self {
        match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Self {
                negative: whole < 0,
                beyond_f64: !is_double(whole.into()),
                ..Self::default()
            },
            (None, Some(whole)) => {
                Self { above_i64: true, beyond_f64: !is_double(whole.into()), ..Self::default() }
            }
            (None, None) => Self { fraction: true, ..Self::default() },
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            negative: self.negative || other.negative,
            above_i64: self.above_i64 || other.above_i64,
            beyond_f64: self.beyond_f64 || other.beyond_f64,
            fraction: self.fraction || other.fraction,
        }
    }

    /// The type that holds all of them; `Utf8`, as they are written, where none does.
    fn data_type(self) -> DataType {
        match self {
            Self { fraction: true, beyond_f64: true, .. } => DataType::Utf8,
            Self { fraction: true, .. } => DataType::Float64,
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
