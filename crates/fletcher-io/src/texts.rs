//! The texts of a chunk's rows: one allocation for all of them.

use std::fmt;

use arrow::array::{Array, LargeStringArray, LargeStringBuilder, StringArray};

use crate::chunk::RowError;

/// Texts of consecutive rows, or why a row has none.
///
/// All stand in one buffer, in a columnar file's case the file's own: a string for each row would
/// be allocated by the thread that reads and freed by another, which costs more than parsing it.
#[derive(Clone)]
pub struct Texts {
    /// Null where the row has no text.
    strings: Strings,
    /// By row, in order; exactly the rows that are null.
    errors: Vec<(usize, RowError)>,
}

/// The layouts that are taken as they are.
#[derive(Clone)]
pub(crate) enum Strings {
    Small(StringArray),
    Large(LargeStringArray),
}

impl Texts {
    /// Strings of a file with the errors of all rows that are null.
    pub(crate) fn new(strings: Strings, errors: Vec<(usize, RowError)>) -> Self {
        let texts = Self { strings, errors };
        debug_assert_eq!(texts.array().null_count(), texts.errors.len());
        texts
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.array().len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row's text, or why it has none.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn get(&self, row: usize) -> Result<&str, &RowError> {
        if let Ok(at) = self.errors.binary_search_by_key(&row, |(row, _)| *row) {
            return Err(&self.errors[at].1);
        }
        Ok(match &self.strings {
            Strings::Small(texts) => texts.value(row),
            Strings::Large(texts) => texts.value(row),
        })
    }

    /// All rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<&str, &RowError>> {
        (0..self.len()).map(|row| self.get(row))
    }

    /// The rows without a text, in order.
    pub fn errors(&self) -> &[(usize, RowError)] {
        &self.errors
    }

    fn array(&self) -> &dyn Array {
        match &self.strings {
            Strings::Small(texts) => texts,
            Strings::Large(texts) => texts,
        }
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Collects texts row by row.
#[derive(Default)]
pub(crate) struct TextsBuilder {
    strings: LargeStringBuilder,
    errors: Vec<(usize, RowError)>,
    len: usize,
}

impl TextsBuilder {
    pub(crate) fn with_capacity(rows: usize, bytes: usize) -> Self {
        let strings = LargeStringBuilder::with_capacity(rows, bytes);
        Self { strings, errors: Vec::new(), len: 0 }
    }

    pub(crate) fn push(&mut self, text: Result<&str, RowError>) {
        match text {
            Ok(text) => self.strings.append_value(text),
            Err(error) => {
                self.strings.append_null();
                self.errors.push((self.len, error));
            }
        }
        self.len += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn finish(mut self) -> Texts {
        Texts::new(Strings::Large(self.strings.finish()), self.errors)
    }
}

impl<'a> FromIterator<Result<&'a str, RowError>> for Texts {
    fn from_iter<I: IntoIterator<Item = Result<&'a str, RowError>>>(rows: I) -> Self {
        let mut texts = TextsBuilder::default();
        rows.into_iter().for_each(|text| texts.push(text));
        texts.finish()
    }
}

/// JSON objects as they were written, with the numbers of their lines.
#[derive(Debug, Clone)]
pub struct Objects {
    lines: Vec<u64>,
    /// Null where the line is no object.
    objects: LargeStringArray,
}

impl Objects {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The number of a row's line, from 1.
    pub fn line(&self, row: usize) -> u64 {
        self.lines[row]
    }

    /// A row's object, if its line is one.
    pub fn get(&self, row: usize) -> Option<&str> {
        self.objects.is_valid(row).then(|| self.objects.value(row))
    }

    /// All rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&str>> {
        (0..self.len()).map(|row| self.get(row))
    }
}

/// Collects objects row by row.
#[derive(Default)]
pub(crate) struct ObjectsBuilder {
    lines: Vec<u64>,
    objects: LargeStringBuilder,
}

impl ObjectsBuilder {
    pub(crate) fn with_capacity(rows: usize, bytes: usize) -> Self {
        let objects = LargeStringBuilder::with_capacity(rows, bytes);
        Self { lines: Vec::with_capacity(rows), objects }
    }

    pub(crate) fn push(&mut self, line: u64, object: Option<&str>) {
        self.lines.push(line);
        self.objects.append_option(object);
    }

    pub(crate) fn finish(mut self) -> Objects {
        Objects { lines: self.lines, objects: self.objects.finish() }
    }
}
