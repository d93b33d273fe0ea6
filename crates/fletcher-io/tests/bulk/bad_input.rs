//! Input that is wrong: an error that names file and place, or a row kept without a vector.

use std::fs;
use std::panic;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use fletcher_io::{
    OnError, SinkError, SourceError, SourceOptions, Vectors, create_sink, is_panic_expected,
    open_source,
};
use serde_json::json;

use crate::support::*;

fn texts_with_null() -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("b"), None, Some("d")]));
    RecordBatch::try_from_iter([("id", ids), ("text", texts)]).unwrap()
}

/// Texts as bytes, one of which are not UTF-8.
fn bytes_with_a_bad_row() -> RecordBatch {
    let texts = vec![&b"a"[..], b"b", b"bad \xff", b"d"];
    let texts: ArrayRef = Arc::new(BinaryArray::from_vec(texts));
    RecordBatch::try_from_iter([("text", texts)]).unwrap()
}

#[test]
fn a_bad_row_ends_the_run_with_its_place() {
    let folder = Folder::new();
    let long = "x".repeat(2000);
    let cases: Vec<(PathBuf, &str)> = vec![
        (
            folder.write("utf8.txt", b"ok\nbad \xff\n"),
            "utf8.txt, line 2: invalid UTF-8 after byte 4",
        ),
        (
            folder.write("long.txt", format!("ok\n{long}\nok")),
            "long.txt, line 2: the line is longer",
        ),
        (
            folder.write("malformed.jsonl", "{\"text\":\"a\"}\n\n{\"text\":\n"),
            "malformed.jsonl, line 3: the line is not valid JSON: EOF",
        ),
        (folder.write("array.jsonl", "[1]"), "array.jsonl, line 1: the line is an array"),
        (
            folder.write("null.jsonl", "{\"text\":null}"),
            "line 1: the text in column \"text\" is null",
        ),
        (folder.write("none.jsonl", "{\"txt\":\"a\"}"), "line 1: the object has no key \"text\""),
        (folder.write("type.jsonl", "{\"text\":1}"), "line 1: the value of \"text\" is a number"),
        (folder.write("utf8.jsonl", b"{\"text\":\"\xc3\"}"), "line 1: invalid UTF-8 after byte 9"),
        (
            folder.write("count.csv", "id,text\n1,a\n\n2\n"),
            "count.csv, line 4: the record has 1 fields where the header has 2",
        ),
        (
            folder.write("crlf.csv", "id,text\r\n1,a\r\n\r\n2\r\n"),
            "crlf.csv, line 4: the record has 1 fields where the header has 2",
        ),
        (
            folder.write("quoted.csv", "id,text\n1,\"a\nb\"\n2,b,c\n"),
            "quoted.csv, line 4: the record has 3 fields",
        ),
        (
            folder.write("utf8.csv", b"id,text\n1,a\n2,b\xff\n"),
            "utf8.csv, line 3: invalid UTF-8 after byte 1 of column \"text\"",
        ),
        (
            folder.write_batch("null.parquet", &texts_with_null(), 2),
            "null.parquet, row 3: the text in column \"text\" is null",
        ),
        (folder.write_batch("null.arrow", &texts_with_null(), 2), "null.arrow, row 3: the text"),
    ];
    for (input, want) in cases {
        let output = folder.path("out.jsonl");
        let error = run(source_options(&input), sink_options(&output)).unwrap_err();
        assert!(matches!(error, Failure::Source(SourceError::Row { .. })), "{error}");
        let error = error.to_string();
        assert!(error.contains(want), "{error}");
        assert!(error.contains("correct it, or keep such rows"), "{error}");
        assert!(!output.exists());
    }
}

#[test]
fn a_bad_file_is_an_error_whatever_the_policy() {
    let folder = Folder::new();
    let parquet = fs::read(folder.write_batch("whole.parquet", &sample(), 4)).unwrap();
    let arrow = fs::read(folder.write_batch("whole.arrow", &sample(), 4)).unwrap();
    let stream = fs::read(folder.write_batch("whole.arrows", &sample(), 4)).unwrap();
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let numbers = RecordBatch::try_from_iter([("text", numbers)]).unwrap();
    let unclosed = format!("id,text\n1,a\n2,\"{}", "b\n3,".repeat(1_000_000));
    let cases: Vec<(PathBuf, &str)> = vec![
        (folder.path("absent.jsonl"), "cannot read"),
        (folder.write("data.xyz", "a"), "unknown format \"xyz\""),
        (folder.write("column.csv", "id,body\n1,a\n"), "its columns are \"id\", \"body\""),
        (folder.write("empty.csv", ""), "its columns are none at all"),
        (folder.write("twice.csv", "text,x,x\n1,2,3\n"), "two columns named \"x\""),
        (
            folder.write("quote.csv", "id,text\n1,\"a\n2,b\n3,c\n"),
            "the record of line 2 spans lines and has an odd quote",
        ),
        (folder.write("runaway.csv", unclosed), "the record of line 3 is longer than"),
        (folder.write("half.parquet", half(&parquet)), "half.parquet is damaged, or not Parquet"),
        (folder.write("empty.parquet", ""), "empty.parquet is damaged"),
        (folder.write("text.parquet", "hello world, not parquet"), "text.parquet is damaged"),
        (folder.write("half.arrow", half(&arrow)), "half.arrow is damaged, or not Arrow IPC"),
        (folder.write("half.arrows", half(&stream)), "half.arrows is damaged"),
        (folder.write("empty.arrows", ""), "empty.arrows is damaged"),
        (folder.write("twice.arrows", stream.repeat(2)), "give one stream at a time"),
        (folder.write("old.feather", "FEA1..."), "Feather version 1"),
        (folder.write_batch("numbers.parquet", &numbers, 1), "holds Int64, not text"),
        (
            folder.write_batch("no_text.parquet", &sample().project(&[0, 2]).unwrap(), 8),
            "no_text.parquet has no column \"text\"; its columns are \"n\", \"score\"",
        ),
    ];
    for (input, want) in cases {
        let output = folder.path("out.jsonl");
        let error = run_skipping(source_options(&input), sink_options(&output)).unwrap_err();
        assert!(matches!(error, Failure::Source(_)), "{error}");
        assert!(error.to_string().contains(want), "{}: {error}", input.display());
        assert!(!output.exists());
    }
}

#[test]
fn damage_anywhere_is_an_error_or_harmless_but_never_a_panic() {
    let folder = Folder::new();
    // Thousands of expected panics need no report; others do.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !is_panic_expected() {
            report(panic);
        }
    }));
    for name in ["in.parquet", "in.arrow", "in.arrows", "zstd.arrow"] {
        let whole = fs::read(folder.write_batch(name, &sample(), 4)).unwrap();
        let damaged = folder.path(&format!("damaged.{}", name.rsplit('.').next().unwrap()));
        let read_all = |bytes: &[u8], threads: usize| {
            fs::write(&damaged, bytes).unwrap();
            let options = SourceOptions { threads, ..source_options(&damaged) };
            let mut source = open_source(options)?;
            while source.next_chunk()?.is_some() {}
            Ok::<_, SourceError>(())
        };
        for length in (0..whole.len()).step_by(7) {
            let cut = read_all(&whole[..length], 1 + length % 3);
            // A stream may end after any batch; its end mark is optional.
            assert!(cut.is_err() || name == "in.arrows", "{name} cut to {length} bytes");
        }
        for place in (0..whole.len()).step_by(2) {
            let mut bytes = whole.clone();
            bytes[place] ^= [0x01, 0x80, 0xff][place / 2 % 3];
            let _ = read_all(&bytes, 1);
            if name == "in.parquet" {
                let _ = read_all(&bytes, 3);
            }
        }
    }
}

#[test]
fn skipped_rows_keep_their_place_in_jsonl() {
    let folder = Folder::new();
    let output = folder.path("out.jsonl");
    let cases: Vec<(PathBuf, Vec<serde_json::Value>)> = vec![
        (
            folder.write("in.txt", b"a\n\xffb\nc"),
            vec![
                json!({"id": 0, "text": "a", "embedding": [0.0, 1.0, 0.1]}),
                json!({"id": 1, "text": null, "embedding": null, "raw": "\u{fffd}b", "error":
                    "line 2: invalid UTF-8 after byte 0 of the line; convert the file to UTF-8"}),
                json!({"id": 2, "text": "c", "embedding": [2.0, 1.0, 0.1]}),
            ],
        ),
        (
            folder.write("in.jsonl", "{\"text\":\"a\",\"k\":1}\n{oops}\n{\"k\":2,\"text\":null}\n"),
            vec![
                json!({"text": "a", "k": 1, "embedding": [0.0, 1.0, 0.1]}),
                json!({"embedding": null, "raw": "{oops}", "error":
                    "line 2: the line is not valid JSON: key must be a string at column 2"}),
                json!({"k": 2, "text": null, "embedding": null, "error":
                    "line 3: the text in column \"text\" is null"}),
            ],
        ),
        (
            folder.write("in.csv", "id,text\n7,a\n8\n9,c\n"),
            vec![
                json!({"id": "7", "text": "a", "embedding": [0.0, 1.0, 0.1]}),
                json!({"id": "8", "text": null, "embedding": null, "raw": "8", "error":
                    "line 3: the record has 1 fields where the header has 2"}),
                json!({"id": "9", "text": "c", "embedding": [2.0, 1.0, 0.1]}),
            ],
        ),
        (
            folder.write_batch("in.parquet", &texts_with_null().slice(1, 2), 8),
            vec![
                json!({"id": 2, "text": "b", "embedding": [0.0, 1.0, 0.1]}),
                json!({"id": 3, "text": null, "embedding": null, "error":
                    "row 2: the text in column \"text\" is null"}),
            ],
        ),
    ];
    for (input, want) in cases {
        run_skipping(source_options(&input), sink_options(&output)).unwrap();
        assert_eq!(read_jsonl(&output), want, "{}", input.display());
    }
}

#[test]
fn skipped_rows_keep_their_place_in_columns() {
    let folder = Folder::new();
    let inputs = [
        folder.write("in.txt", b"a\nb\n\xff\nd"),
        folder.write("in.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\nnot json\n{\"text\":\"d\"}"),
        folder.write("in.csv", "text,x\na,1\nb,2\nc\nd,4\n"),
        folder.write_batch("in.parquet", &texts_with_null(), 4),
        folder.write_batch("in.arrow", &texts_with_null(), 4),
        folder.write_batch("bytes.parquet", &bytes_with_a_bad_row(), 4),
        folder.write_batch("bytes.arrow", &bytes_with_a_bad_row(), 4),
    ];
    for input in inputs {
        for extension in ["parquet", "arrow", "arrows"] {
            let output = folder.path(&format!("out.{extension}"));
            run_skipping(source_options(&input), sink_options(&output)).unwrap();
            let vectors = read_vectors(&output);
            let want: Vec<_> = [(0, "a"), (1, "b"), (2, ""), (3, "d")]
                .map(|(row, text)| (row != 2).then(|| vector(row, text).to_vec()))
                .into();
            assert_eq!(vectors, want, "{} to {extension}", input.display());
            let batch = read_batch(&output);
            let errors = batch.column_by_name("error").unwrap().as_string::<i32>().clone();
            assert_eq!(errors.null_count(), 3);
            assert!(errors.value(2).contains(" 3: ") || errors.value(2).contains("line 4: "));
            assert!(batch.schema().field_with_name("vector").unwrap().is_nullable());
        }
    }
}

#[test]
fn errors_of_the_engine_count_as_errors_of_rows() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "a\nb\n");
    let output = folder.path("out.jsonl");
    for on_error in [OnError::Fail, OnError::Skip] {
        let mut source = open_source(source_options(&input)).unwrap();
        let options = fletcher_io::SinkOptions { on_error, ..sink_options(&output) };
        let mut sink = create_sink(options, source.schema()).unwrap();
        let chunk = source.next_chunk().unwrap().unwrap();
        let errors = vec![None, Some("too long".to_owned())];
        let vectors = Vectors { errors, ..vectors(&chunk) };
        let result = sink.write(chunk, vectors);
        match on_error {
            OnError::Fail => {
                let message = result.unwrap_err().to_string();
                assert!(message.starts_with("row 2: too long; "), "{message}");
            }
            OnError::Skip => {
                result.unwrap();
                sink.finish().unwrap();
                let want = json!({"id": 1, "text": "b", "embedding": null, "error": "too long"});
                assert_eq!(read_jsonl(&output)[1], want);
            }
        }
    }
}

#[test]
fn objects_that_do_not_fit_the_columns_say_where() {
    let folder = Folder::new();
    let head = "{\"id\":1,\"text\":\"a\",\"o\":{\"k\":1}}\n".repeat(3);
    let cases = [
        ("{\"id\":\"x\",\"text\":\"b\"}", "id", "null,\"b\",null"),
        ("{\"id\":2,\"text\":\"b\",\"new\":1}", "new", "2,\"b\",null"),
        ("{\"id\":2,\"text\":\"b\",\"o\":{\"new\":1}}", "new", "2,\"b\",null"),
        ("{\"id\":2,\"text\":\"b\",\"o\":[1]}", "o", "2,\"b\",null"),
        ("{\"id\":18446744073709551615,\"text\":\"b\"}", "id", "null,\"b\",null"),
        // What Arrow's reader would round, or take out of its quotes.
        ("{\"id\":1.75,\"text\":\"b\"}", "id", "null,\"b\",null"),
        ("{\"id\":\"007\",\"text\":\"b\"}", "id", "null,\"b\",null"),
        ("{\"id\":2,\"text\":\"b\",\"o\":{\"k\":0.5}}", "k", "2,\"b\",null"),
    ];
    for (row, field, kept) in cases {
        let input = folder.write("in.jsonl", format!("{head}\n{row}\n"));
        let output = folder.path("out.arrow");
        let error = run(source_options(&input), sink_options(&output)).unwrap_err();
        assert!(matches!(error, Failure::Sink(SinkError::Misfit { line: 5, .. })), "{error}");
        let error = error.to_string();
        assert!(error.contains(field) && error.contains("write jsonl"), "{row}: {error}");
        assert!(!output.exists());

        run_skipping(source_options(&input), sink_options(&output)).unwrap();
        let vectors = read_vectors(&output);
        assert_eq!((vectors.len(), &vectors[3]), (4, &None), "{row}");
        let batch = read_batch(&output);
        let columns: Vec<String> = batch.columns()[..3]
            .iter()
            .zip(["", "\"", ""])
            .map(|(column, quote)| match column.is_null(3) {
                true => "null".to_owned(),
                false => {
                    let value = arrow::util::display::array_value_to_string(column, 3).unwrap();
                    format!("{quote}{value}{quote}")
                }
            })
            .collect();
        assert_eq!(columns.join(","), kept, "{row}");
        let errors = batch.column_by_name("error").unwrap();
        assert!(errors.as_string::<i32>().value(3).starts_with("line 5 does not fit"));
        fs::remove_file(output).unwrap();
    }
}

#[test]
fn taken_column_names_name_their_remedy() {
    let folder = Folder::new();
    let jsonl = |line: &str| folder.write("in.jsonl", line);
    let run_to = |input: PathBuf, name: &str, column: Option<&str>, skip: bool| {
        let mut sink = sink_options(&folder.path(name));
        sink.vector_column = column.map(str::to_owned);
        let run = if skip { run_skipping } else { run };
        run(source_options(&input), sink).map_err(|e| e.to_string())
    };
    let clash = "choose another name for the vectors";
    let rename = "rename it in the input";
    let row = "{\"text\":\"a\",\"embedding\":1,\"vector\":2,\"error\":3}";
    let escaped = "{\"text\":\"a\",\"\\u0065mbedding\":1}";
    for (line, name, column, skip, want) in [
        (row, "o.jsonl", None, false, Err(clash)),
        (escaped, "o.jsonl", None, false, Err(clash)),
        (row, "o.arrow", None, false, Err(clash)),
        (row, "o.parquet", None, false, Err(clash)),
        (row, "o.jsonl", Some("v"), false, Ok(())),
        (row, "o.parquet", Some("v"), false, Ok(())),
        (row, "o.jsonl", Some("v"), true, Err(rename)),
        (row, "o.parquet", Some("v"), true, Err(rename)),
        (row, "o.jsonl", Some("text"), false, Err(clash)),
        ("{\"text\":\"a\",\"k\":{\"embedding\":1}}", "o.jsonl", None, false, Ok(())),
    ] {
        match (run_to(jsonl(line), name, column, skip), want) {
            (Ok(_), Ok(())) => {}
            (Err(got), Err(want)) if got.contains(want) => {}
            (got, want) => panic!("{line} to {name}: {got:?}, not {want:?}"),
        }
    }
    let parquet = folder.write_batch("in.parquet", &sample(), 8);
    let got = run_to(parquet, "o.parquet", Some("score"), false).unwrap_err();
    assert!(got.contains("already has a column \"score\"; choose another"), "{got}");
}

/// Whatever the policy for bad rows: these have no rows at all.
#[test]
fn a_compressed_file_is_told_as_one() {
    let folder = Folder::new();
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00";
    for (name, content, says) in [
        ("a.jsonl", &gzip[..], "compressed by gzip; unpack it first"),
        ("a.csv", gzip, "compressed by gzip"),
        ("a.parquet", gzip, "compressed by gzip"),
        ("a.jsonl.gz", gzip, "compressed by gzip"),
        ("b.jsonl", b"PAR1\x15\x04\x15\x10", "is a Parquet file; name the input format"),
        ("b.csv", b"\xff\xfet\0e\0x\0t\0\n\0", "is text in UTF-16; convert it to UTF-8"),
    ] {
        let input = folder.write(name, content);
        let options = SourceOptions { on_error: OnError::Skip, ..source_options(&input) };
        let options = SourceOptions { format: None, ..options };
        let error = open_source(options).err().expect(name);
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(error.to_string().contains(&input.display().to_string()), "{name}: {error}");
    }
}
