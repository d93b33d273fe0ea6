//! Inputs in every format, a stand-in for the engine, and readers for every output.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Array, Int64Array, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::Float32Type;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow::record_batch::RecordBatch;
use fletcher_io::{
    Chunk, ChunkLimits, OnError, SinkError, SinkOptions, SinkTarget, SourceError, SourceInput,
    SourceOptions, Vectors, create_sink, open_source,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

/// Numbers in a vector.
pub(crate) const DIM: usize = 3;

/// Few rows a chunk, so that small inputs have several.
pub(crate) const SMALL: ChunkLimits = ChunkLimits { rows: 3, bytes: 1 << 20, row_bytes: 1 << 10 };

/// What ended a run.
#[derive(Debug)]
pub(crate) enum Failure {
    Source(SourceError),
    Sink(SinkError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(e) => e.fmt(f),
            Self::Sink(e) => e.fmt(f),
        }
    }
}

pub(crate) fn source_options(input: &Path) -> SourceOptions {
    SourceOptions {
        input: SourceInput::Path(input.to_owned()),
        format: None,
        text_column: "text".to_owned(),
        on_error: OnError::Fail,
        limits: SMALL,
        threads: 1,
    }
}

pub(crate) fn sink_options(output: &Path) -> SinkOptions {
    SinkOptions {
        target: SinkTarget::Path(output.to_owned()),
        format: None,
        dim: DIM,
        vector_column: None,
        on_error: OnError::Fail,
        metadata: BTreeMap::from([("fletcher.model".to_owned(), "stand-in".to_owned())]),
        input: None,
        threads: 1,
    }
}

/// The vector that the stand-in engine gives a row: its number, its length, and a number that
/// only the shortest round-trip digits of f32 print well.
pub(crate) fn vector(row: u64, text: &str) -> [f32; DIM] {
    [row as f32, text.len() as f32, 0.1]
}

/// Vectors of a chunk; NaN where there is no text, which no sink may write.
pub(crate) fn vectors(chunk: &Chunk) -> Vectors {
    let rows = chunk.texts.iter().zip(chunk.first_row..);
    let values = rows.flat_map(|(text, row)| match text {
        Ok(text) => vector(row, text),
        Err(_) => [f32::NAN; DIM],
    });
    Vectors { dim: DIM, values: values.collect(), errors: Vec::new() }
}

/// Source to sink; the numbers of rows in the chunks. Whatever comes of it with three threads on
/// either side must come of it with none.
pub(crate) fn run(source: SourceOptions, sink: SinkOptions) -> Result<Vec<usize>, Failure> {
    let (threads, outcome) = (3, |outcome: &Result<_, Failure>| format!("{outcome:?}"));
    let by_threads = run_once(
        SourceOptions { threads, ..source.clone() },
        SinkOptions { threads, ..sink.clone() },
    );
    let alone = run_once(source, sink);
    assert_eq!(outcome(&by_threads), outcome(&alone));
    alone
}

/// As [`run`] with what the options say alone: a pipe is read and written once.
pub(crate) fn run_once(source: SourceOptions, sink: SinkOptions) -> Result<Vec<usize>, Failure> {
    let mut source = open_source(source).map_err(Failure::Source)?;
    let mut sink = create_sink(sink, source.schema()).map_err(Failure::Sink)?;
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk().map_err(Failure::Source)? {
        assert_eq!(chunk.first_row, chunks.iter().sum::<usize>() as u64);
        chunks.push(chunk.len());
        let vectors = vectors(&chunk);
        sink.write(chunk, vectors).map_err(Failure::Sink)?;
    }
    sink.finish().map_err(Failure::Sink)?;
    Ok(chunks)
}

/// As [`run`], skipping errors.
pub(crate) fn run_skipping(
    mut source: SourceOptions,
    mut sink: SinkOptions,
) -> Result<Vec<usize>, Failure> {
    source.on_error = OnError::Skip;
    sink.on_error = OnError::Skip;
    run(source, sink)
}

/// A folder with files, gone at the end of the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Names of all files, hidden ones too.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A record batch as a file of the format that its name says, `n` rows a batch or row group.
    /// Arrow files whose name begins with a codec's are compressed by it.
    pub(crate) fn write_batch(&self, name: &str, batch: &RecordBatch, n: usize) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        let parts = (0..batch.num_rows())
            .step_by(n)
            .map(|start| batch.slice(start, n.min(batch.num_rows() - start)));
        match name.rsplit('.').next().unwrap() {
            "parquet" => {
                let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
                parts.for_each(|part| {
                    writer.write(&part).unwrap();
                    writer.flush().unwrap();
                });
                writer.close().unwrap();
            }
            "arrow" => {
                let codec = name.starts_with("zstd").then_some(CompressionType::ZSTD);
                let codec = codec.or(name.starts_with("lz4").then_some(CompressionType::LZ4_FRAME));
                let options = IpcWriteOptions::default().try_with_compression(codec).unwrap();
                let schema = batch.schema();
                let mut writer = FileWriter::try_new_with_options(file, &schema, options).unwrap();
                parts.for_each(|part| writer.write(&part).unwrap());
                writer.finish().unwrap();
            }
            "arrows" => {
                let mut writer = StreamWriter::try_new(file, &batch.schema()).unwrap();
                parts.for_each(|part| writer.write(&part).unwrap());
                writer.finish().unwrap();
            }
            other => panic!("no writer for {other}"),
        }
        path
    }
}

/// A columnar file as one batch, read without this crate's sources.
pub(crate) fn read_batch(path: &Path) -> RecordBatch {
    let file = File::open(path).unwrap();
    let (schema, batches): (_, Vec<_>) = match path.extension().unwrap().to_str().unwrap() {
        "parquet" => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            (builder.schema().clone(), builder.build().unwrap().map(Result::unwrap).collect())
        }
        "arrow" => {
            let reader = FileReader::try_new(file, None).unwrap();
            (reader.schema(), reader.map(Result::unwrap).collect())
        }
        "arrows" => {
            let reader = StreamReader::try_new(file, None).unwrap();
            (reader.schema(), reader.map(Result::unwrap).collect())
        }
        other => panic!("no reader for {other}"),
    };
    concat_batches(&schema, &batches).unwrap()
}

/// The objects of a JSONL file.
pub(crate) fn read_jsonl(path: &Path) -> Vec<Value> {
    let content = fs::read_to_string(path).unwrap();
    content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The vectors of an npy file, and its shape as written.
pub(crate) fn read_npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    let header = std::str::from_utf8(&bytes[10..128]).unwrap();
    assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': ("));
    assert!(header.ends_with('\n'));
    let shape = header.split(['(', ')']).nth(1).unwrap().to_owned();
    let values = bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (shape, values.collect())
}

/// The vectors of any output, `None` where there is none.
pub(crate) fn read_vectors(path: &Path) -> Vec<Option<Vec<f32>>> {
    match path.extension().unwrap().to_str().unwrap() {
        "jsonl" => read_jsonl(path)
            .iter()
            .map(|row| serde_json::from_value(row["embedding"].clone()).unwrap())
            .collect(),
        "npy" => {
            let (_, values) = read_npy(path);
            values.chunks(DIM).map(|row| Some(row.to_vec())).collect()
        }
        _ => {
            let batch = read_batch(path);
            let lists = batch.column_by_name("vector").unwrap().as_fixed_size_list().clone();
            lists
                .iter()
                .map(|list| Some(list?.as_primitive::<Float32Type>().values().to_vec()))
                .collect()
        }
    }
}

/// Texts that formats like to break on; none has a line end, which plain lines cannot hold.
pub(crate) const TEXTS: [&str; 8] = [
    "plain",
    "",
    "with \"quotes\", commas and \\ backslashes",
    "héllo wörld 漢字 👩‍👩‍👧",
    " leading and trailing ",
    "tab\there",
    "null",
    "\u{2028}line separator",
];

/// The texts with a number and a score each.
pub(crate) fn sample() -> RecordBatch {
    let rows = TEXTS.len() as i64;
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from_iter_values((0..rows).map(|n| 10 * n)))),
        ("text", Arc::new(StringArray::from_iter_values(TEXTS))),
        ("score", Arc::new(Float32Array::from_iter((0..rows).map(|n| (n != 2).then_some(0.5))))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}
