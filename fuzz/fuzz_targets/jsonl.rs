//! A JSONL file through the JSONL source into the JSONL and the Arrow sink.
//!
//! The first byte chooses the limits of a chunk, the rest is the file. With `Skip`, every line that
//! is not blank must come back as one row, in order, and the only error a sink may know is that a
//! name is taken. With `Fail`, the run ends in an error exactly if `Skip` has met one.

#![no_main]

use std::collections::HashMap;
use std::path::Path;

use fletcher_io::{
    ChunkLimits, OnError, Payload, SinkError, SinkFormat, SinkOptions, SinkTarget, SourceError,
    SourceFormat, SourceInput, SourceOptions, VectorsView, create_sink, open_source,
};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

/// An object's values as they are written: a number may be beyond what `f64` holds.
type Row<'a> = HashMap<String, &'a RawValue>;

/// Numbers in a vector; all of them 0.5.
const DIM: usize = 2;

/// How a run ended that wrote its rows into a sink.
struct Run {
    /// Rows that came out of the source.
    rows: usize,
    /// Whether one of them had no text.
    bad_rows: bool,
    source: Result<(), SourceError>,
    sink: Result<(), SinkError>,
}

fn run(input: &Path, output: &Path, format: SinkFormat, options: SourceOptions) -> Run {
    let on_error = options.on_error;
    let mut run = Run { rows: 0, bad_rows: false, source: Ok(()), sink: Ok(()) };
    let mut source = open_source(options).expect("the file is there");
    let options = SinkOptions {
        target: SinkTarget::Path(output.to_owned()),
        format: Some(format),
        dim: DIM,
        vector_column: None,
        on_error,
        metadata: Default::default(),
        input: Some(input.to_owned()),
    };
    let mut sink = create_sink(options, source.schema()).expect("the names are free");
    loop {
        let chunk = match source.next_chunk() {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                run.source = Err(error);
                return run;
            }
        };
        assert_eq!(chunk.first_row, run.rows as u64);
        let Payload::Objects(objects) = &chunk.payload else { panic!("JSONL rows are objects") };
        assert_eq!(objects.len(), chunk.len());
        run.rows += chunk.len();
        run.bad_rows |= chunk.texts.iter().any(Result::is_err);
        let values = vec![0.5; chunk.len() * DIM];
        if run.sink.is_ok() {
            run.sink = sink.write(&chunk, VectorsView { dim: DIM, values: &values, errors: &[] });
        }
    }
    if run.sink.is_ok() {
        run.sink = sink.finish();
    }
    run
}

/// Lines that are not blank. Invalid UTF-8 is a row of its own kind, not a blank.
fn count_rows(file: &[u8]) -> usize {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    file.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count()
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, file)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::write(&input, file).expect("room for a small file");
    let rows = [1, 2, 7, 4096][usize::from(first % 4)];
    let options = |on_error| SourceOptions {
        input: SourceInput::Path(input.clone()),
        format: Some(SourceFormat::Jsonl),
        text_column: "text".to_owned(),
        on_error,
        limits: ChunkLimits { rows, bytes: 1 << 20, row_bytes: 1 << 20 },
    };
    for format in [SinkFormat::Jsonl, SinkFormat::Arrow] {
        let skip = run(&input, &output, format, options(OnError::Skip));
        assert!(skip.source.is_ok(), "{:?}", skip.source);
        assert_eq!(skip.rows, count_rows(file));
        match (&skip.sink, format) {
            (Ok(()), SinkFormat::Jsonl) => check_lines(&output, skip.rows),
            (Ok(()) | Err(SinkError::ColumnClash { .. }), _) => {}
            (Err(error), _) => panic!("{error}"),
        }
        let fail = run(&input, &output, format, options(OnError::Fail));
        assert_eq!(fail.source.is_err(), skip.bad_rows, "{:?}", fail.source);
    }
});

/// Each line of the output must be an object with a vector, or with null and an error.
fn check_lines(output: &Path, rows: usize) {
    let text = std::fs::read_to_string(output).expect("the output is UTF-8");
    assert_eq!(text.lines().count(), rows);
    for line in text.split_terminator('\n') {
        let row: Row<'_> = serde_json::from_str(line).expect("a JSON object");
        let (vector, error) = (row["embedding"].get(), row.get("error"));
        assert_eq!(vector == "null", error.is_some(), "{line}");
        assert!(vector == "null" || vector == "[0.5,0.5]", "{line}");
    }
}
