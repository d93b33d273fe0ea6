//! File formats, by name and by extension.

use std::path::Path;
use std::str::FromStr;

/// A format that texts are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFormat {
    /// One text a line.
    Lines,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header, quoted like CSV.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream: the first bytes tell.
    Arrow,
}

/// A format that vectors are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkFormat {
    /// One JSON object a line.
    Jsonl,
    /// Arrow IPC file; on standard output an Arrow IPC stream, which needs no seeking reader.
    Arrow,
    /// Arrow IPC stream.
    ArrowStream,
    /// Apache Parquet.
    Parquet,
    /// NumPy array, vectors only.
    Npy,
}

/// A format name or file extension that says nothing to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format {name:?}; known are {known}")]
pub struct UnknownFormat {
    /// The name or extension as given.
    pub name: String,
    /// The names that are known, for people.
    pub known: &'static str,
}

impl SourceFormat {
    /// Names that [`FromStr`] takes, for help texts.
    pub const NAMES: [&'static str; 6] = ["lines", "jsonl", "csv", "tsv", "parquet", "arrow"];

    /// The format that a path's extension stands for.
    pub fn from_path(path: &Path) -> Result<Self, UnknownFormat> {
        extension(path).parse()
    }
}

impl FromStr for SourceFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name.to_ascii_lowercase().as_str() {
            "lines" | "txt" | "text" => Ok(Self::Lines),
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "parquet" => Ok(Self::Parquet),
            "arrow" | "arrows" | "feather" | "ipc" => Ok(Self::Arrow),
            _ => Err(UnknownFormat {
                name: name.to_owned(),
                known: "lines (.txt), jsonl (.ndjson), csv, tsv, parquet, \
                        arrow (.feather, .ipc, .arrows)",
            }),
        }
    }
}

impl SinkFormat {
    /// Names that [`FromStr`] takes, for help texts.
    pub const NAMES: [&'static str; 5] = ["jsonl", "arrow", "arrows", "parquet", "npy"];

    /// The format that a path's extension stands for.
    pub fn from_path(path: &Path) -> Result<Self, UnknownFormat> {
        extension(path).parse()
    }
}

impl FromStr for SinkFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "arrow" | "feather" | "ipc" => Ok(Self::Arrow),
            "arrows" => Ok(Self::ArrowStream),
            "parquet" => Ok(Self::Parquet),
            "npy" => Ok(Self::Npy),
            _ => Err(UnknownFormat {
                name: name.to_owned(),
                known: "jsonl (.ndjson), arrow (.feather, .ipc), arrows, parquet, npy",
            }),
        }
    }
}

/// The extension, empty where there is none.
fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_name_formats() {
        for (path, want) in [
            ("a.txt", Some(SourceFormat::Lines)),
            ("a.lines", Some(SourceFormat::Lines)),
            ("a.JSONL", Some(SourceFormat::Jsonl)),
            ("dir.csv/a.ndjson", Some(SourceFormat::Jsonl)),
            ("a.csv", Some(SourceFormat::Csv)),
            ("a.tsv", Some(SourceFormat::Tsv)),
            ("a.parquet", Some(SourceFormat::Parquet)),
            ("a.arrow", Some(SourceFormat::Arrow)),
            ("a.feather", Some(SourceFormat::Arrow)),
            ("a.ipc", Some(SourceFormat::Arrow)),
            ("a.arrows", Some(SourceFormat::Arrow)),
            ("a.json", None),
            ("a", None),
        ] {
            assert_eq!(SourceFormat::from_path(Path::new(path)).ok(), want, "{path}");
        }
        for (path, want) in [
            ("a.jsonl", Some(SinkFormat::Jsonl)),
            ("a.arrow", Some(SinkFormat::Arrow)),
            ("a.arrows", Some(SinkFormat::ArrowStream)),
            ("a.parquet", Some(SinkFormat::Parquet)),
            ("a.npy", Some(SinkFormat::Npy)),
            ("a.csv", None),
        ] {
            assert_eq!(SinkFormat::from_path(Path::new(path)).ok(), want, "{path}");
        }
    }

    #[test]
    fn every_listed_name_parses() {
        assert!(SourceFormat::NAMES.iter().all(|name| name.parse::<SourceFormat>().is_ok()));
        assert!(SinkFormat::NAMES.iter().all(|name| name.parse::<SinkFormat>().is_ok()));
    }
}
