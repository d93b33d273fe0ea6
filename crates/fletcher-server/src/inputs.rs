//! What there is to embed, in the shapes in which dialects bring it: strings, token ids, or a
//! column that is read where it lies.

use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::error::RequestError;

/// The inputs of one request.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Texts and sequences of token ids.
    Items(Vec<Item>),
    /// A column of texts.
    Column(TextColumn),
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A text.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
}

/// One input, borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    /// A text.
    Text(&'a str),
    /// Token ids.
    Ids(&'a [u32]),
    /// A null of a column.
    Null,
}

impl Inputs {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Inputs::Items(items) => items.len(),
            Inputs::Column(column) => column.0.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    pub(crate) fn get(&self, index: usize) -> Input<'_> {
        match self {
            Inputs::Items(items) => match &items[index] {
                Item::Text(text) => Input::Text(text),
                Item::Ids(ids) => Input::Ids(ids),
            },
            Inputs::Column(column) => column.get(index).map_or(Input::Null, Input::Text),
        }
    }

    /// The texts among them.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| match self.get(index) {
            Input::Text(text) => Some(text),
            _ => None,
        })
    }

    /// About how many bytes of text there are; an upper bound for a slice of a column.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Inputs::Items(items) => items
                .iter()
                .map(|item| match item {
                    Item::Text(text) => text.len(),
                    Item::Ids(ids) => 4 * ids.len(),
                })
                .sum(),
            Inputs::Column(column) => column.0.get_array_memory_size(),
        }
    }
}

impl From<Vec<String>> for Inputs {
    fn from(texts: Vec<String>) -> Self {
        Inputs::Items(texts.into_iter().map(Item::Text).collect())
    }
}

/// An Arrow column of strings of any layout.
#[derive(Debug, Clone)]
pub struct TextColumn(ArrayRef);

impl TextColumn {
    /// Takes a column that holds strings.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn new(name: &str, column: &ArrayRef) -> Result<Self, RequestError> {
        match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(Self(column.clone())),
            DataType::Dictionary(_, values) if **values == DataType::Utf8 => {
                let plain = arrow::compute::cast(column, &DataType::Utf8);
                let plain = plain.map_err(|error| RequestError::invalid(error.to_string()))?;
                Ok(Self(plain))
            }
            other => Err(RequestError::invalid(format!(
                "column `{name}` is {other}, but must hold strings (Utf8, LargeUtf8 or Utf8View)"
            ))),
        }
    }

    fn get(&self, row: usize) -> Option<&str> {
        if self.0.is_null(row) {
            return None;
        }
        match self.0.data_type() {
            DataType::Utf8 => Some(self.0.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Some(self.0.as_string::<i64>().value(row)),
            _ => Some(self.0.as_string_view().value(row)),
        }
    }
}

/// The `input` of JSON dialects: a text, a list of token ids, or a list of either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonInput {
    /// In order.
    pub(crate) items: Vec<Item>,
}

impl JsonInput {
    /// The inputs, of which there must be one at least.
    pub(crate) fn into_inputs(self, key: &str) -> Result<Inputs, RequestError> {
        match self.items.is_empty() {
            true => Err(RequestError::Empty { key: key.into() }),
            false => Ok(Inputs::Items(self.items)),
        }
    }
}

/// What an element of a list can be. A list of numbers is one input, not many.
enum Element {
    Text(String),
    Ids(Vec<u32>),
    Id(u32),
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
        let id = u32::try_from(id).map_err(|_| E::custom("a token id above 2^32"))?;
        Ok(Element::Id(id))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element::<u32>()? {
            ids.push(id);
        }
        Ok(Element::Ids(ids))
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = JsonInput;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list of texts, a list of token ids, or a list of such lists")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<JsonInput, E> {
        Ok(JsonInput { items: vec![Item::Text(text.to_owned())] })
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<JsonInput, E> {
        Ok(JsonInput { items: vec![Item::Text(text)] })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<JsonInput, A::Error> {
        let (mut items, mut ids) = (Vec::new(), Vec::new());
        while let Some(element) = seq.next_element()? {
            match element {
                Element::Text(text) => items.push(Item::Text(text)),
                Element::Ids(ids) => items.push(Item::Ids(ids)),
                Element::Id(id) => ids.push(id),
            }
        }
        match (items.is_empty(), ids.is_empty()) {
            (_, true) => Ok(JsonInput { items }),
            (true, false) => Ok(JsonInput { items: vec![Item::Ids(ids)] }),
            (false, false) => Err(de::Error::custom(
                "token ids stand beside texts; put each list of ids in brackets",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for JsonInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_input() {
        let text = |t: &str| Item::Text(t.into());
        let ok: [(&str, Vec<Item>); 7] = [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![Item::Ids(vec![1, 2])]),
            ("[[1,2],[3]]", vec![Item::Ids(vec![1, 2]), Item::Ids(vec![3])]),
            (r#"["a",[3]]"#, vec![text("a"), Item::Ids(vec![3])]),
            (r#""\ud83d\ude00""#, vec![text("😀")]),
            ("[]", vec![]),
        ];
        for (json, items) in ok {
            assert_eq!(serde_json::from_str::<JsonInput>(json).unwrap().items, items, "{json}");
        }
        for json in
            ["1", "null", "{}", "[null]", "[-1]", "[1.5]", r#"["a",1]"#, "[[[1]]]", "[4294967296]"]
        {
            assert!(serde_json::from_str::<JsonInput>(json).is_err(), "{json}");
        }
    }
}
