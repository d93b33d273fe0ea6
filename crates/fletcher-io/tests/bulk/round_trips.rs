//! Every source into every sink: all rows, in order, with all that they had.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, Decimal128Array, DictionaryArray, Int32Array, Int64Array,
    LargeStringArray, ListArray, StringArray, StringViewArray, StructArray,
    TimestampMicrosecondArray, UnionArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use fletcher_io::{
    ChunkLimits, ReferenceRow, SinkTarget, SourceFormat, SourceInput, SourceSchema, open_source,
    read_reference,
};
use serde_json::{Value, json};

use crate::support::*;

/// The sample in each source format.
fn inputs(folder: &Folder) -> Vec<PathBuf> {
    let mut csv = String::from("n,text,score\n");
    let mut tsv = String::from("n\ttext\tscore\r\n");
    let mut jsonl = String::new();
    for (n, text) in TEXTS.iter().enumerate() {
        let quoted = format!("\"{}\"", text.replace('"', "\"\""));
        csv += &format!("{},{quoted},0.5\n", 10 * n);
        tsv += &format!("{}\t{quoted}\t0.5\r\n", 10 * n);
        jsonl += &format!("{}\n", json!({"n": 10 * n, "text": text, "score": 0.5}));
    }
    vec![
        folder.write("in.txt", TEXTS.join("\n")),
        folder.write("crlf.txt", format!("\u{feff}{}\r\n", TEXTS.join("\r\n"))),
        folder.write("in.jsonl", jsonl),
        folder.write("in.csv", csv),
        folder.write("bom.tsv", format!("\u{feff}{tsv}")),
        folder.write_batch("in.parquet", &sample(), 5),
        folder.write_batch("in.arrow", &sample(), 5),
        folder.write_batch("zstd.arrow", &sample(), 5),
        folder.write_batch("lz4.arrow", &sample(), 5),
        folder.write_batch("in.arrows", &sample(), 2),
    ]
}

#[test]
fn every_source_into_every_sink() {
    let folder = Folder::new();
    for input in inputs(&folder) {
        let name = input.file_name().unwrap().to_str().unwrap().to_owned();
        let is_lines = name.ends_with(".txt");
        for extension in ["jsonl", "arrow", "arrows", "parquet", "npy"] {
            let case = format!("{name} to {extension}");
            let output = folder.path(&format!("out.{extension}"));
            let chunks = run(source_options(&input), sink_options(&output));
            let chunks = chunks.unwrap_or_else(|e| panic!("{case}: {e}"));
            assert!(chunks.len() > 2 && chunks.iter().all(|rows| *rows <= 3), "{case}: {chunks:?}");

            let want: Vec<_> =
                (0..).zip(TEXTS).map(|(row, text)| Some(vector(row, text).to_vec())).collect();
            assert_eq!(read_vectors(&output), want, "{case}");
            match extension {
                "npy" => assert_eq!(read_npy(&output).0, "8, 3", "{case}"),
                "jsonl" => check_objects(&read_jsonl(&output), is_lines, &case),
                _ => check_columns(&read_batch(&output), is_lines, &case),
            }
        }
    }
}

/// A CSV's columns are strings; the others keep their numbers.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

fn check_objects(objects: &[Value], is_lines: bool, case: &str) {
    for (row, (object, text)) in objects.iter().zip(TEXTS).enumerate() {
        let keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(object["text"], text, "{case}");
        if is_lines {
            assert_eq!(keys, ["id", "text", "embedding"], "{case}");
            assert_eq!(object["id"], row, "{case}");
        } else {
            assert_eq!(keys, ["n", "text", "score", "embedding"], "{case}");
            assert_eq!(number(&object["n"]), 10.0 * row as f64, "{case}");
        }
    }
}

fn check_columns(batch: &RecordBatch, is_lines: bool, case: &str) {
    let schema = batch.schema();
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let want: &[_] =
        if is_lines { &["id", "text", "vector"] } else { &["n", "text", "score", "vector"] };
    assert_eq!(names, want, "{case}");
    let vectors = schema.field_with_name("vector").unwrap();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    assert_eq!(vectors.data_type(), &DataType::FixedSizeList(item, 3), "{case}");
    assert!(!vectors.is_nullable(), "{case}");
    assert_eq!(schema.metadata()["fletcher.model"], "stand-in", "{case}");
    let texts = arrow::compute::cast(batch.column(1), &DataType::Utf8).unwrap();
    assert_eq!(texts.as_ref(), &StringArray::from_iter_values(TEXTS), "{case}");
    let numbers = arrow::compute::cast(batch.column(0), &DataType::Int64).unwrap();
    let step = if is_lines { 1 } else { 10 };
    assert_eq!(numbers.as_ref(), &Int64Array::from_iter_values((0..8).map(|n| n * step)), "{case}");
}

#[test]
fn arguments_are_rows() {
    let folder = Folder::new();
    let output = folder.path("out.jsonl");
    let mut options = source_options(&output);
    options.input = SourceInput::Texts(vec!["two\nlines".to_owned(), "b".to_owned()]);
    assert_eq!(run(options, sink_options(&output)).unwrap(), [2]);
    assert_eq!(
        fs::read_to_string(&output).unwrap(),
        "{\"id\":0,\"text\":\"two\\nlines\",\"embedding\":[0.0,9.0,0.1]}\n\
         {\"id\":1,\"text\":\"b\",\"embedding\":[1.0,1.0,0.1]}\n"
    );
}

/// A batch of all that passes through, with one dictionary for each `n` rows where `n` is given.
fn rich(text: ArrayRef) -> RecordBatch {
    let rows = text.len();
    let labels: DictionaryArray<Int32Type> =
        ["x", "y", "x", "z"].into_iter().cycle().take(rows).collect();
    let lists = (0..rows as i32).map(|n| (n % 3 != 1).then(|| vec![Some(n), None]));
    let tags = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
    let times =
        TimestampMicrosecondArray::from_iter_values((0..rows as i64).map(|n| n * 86_400_000_000));
    let prices = Decimal128Array::from_iter_values((0..rows as i128).map(|n| n * 12_345));
    let blobs = BinaryArray::from_iter_values((0..rows).map(|n| vec![n as u8, 0xff]));
    let inner: ArrayRef = Arc::new(Int64Array::from_iter(
        (0..rows as i64).map(|n| (n % 2 == 0).then_some(i64::MAX - n)),
    ));
    let field = Arc::new(Field::new("big", DataType::Int64, true));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("label", Arc::new(labels)),
        ("text", text),
        ("tags", Arc::new(tags)),
        ("time", Arc::new(times.with_timezone("Europe/Zurich"))),
        ("price", Arc::new(prices.with_precision_and_scale(20, 2).unwrap())),
        ("blob", Arc::new(blobs)),
        ("nested", Arc::new(StructArray::from(vec![(field, inner)]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let metadata = [("origin".to_owned(), "test".to_owned())].into();
    let schema = Schema::clone(&batch.schema()).with_metadata(metadata);
    batch.with_schema(Arc::new(schema)).unwrap()
}

#[test]
fn columns_of_any_type_pass_untouched() {
    let texts = TEXTS.iter().copied();
    let layouts: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(texts.clone())),
        Arc::new(LargeStringArray::from_iter_values(texts.clone())),
        Arc::new(StringViewArray::from_iter_values(texts.clone())),
        Arc::new(texts.collect::<DictionaryArray<Int32Type>>()),
    ];
    for text in layouts {
        let want = rich(text);
        for (from, to) in [
            ("in.parquet", "out.parquet"),
            ("in.arrow", "out.arrow"),
            ("in.arrows", "out.arrows"),
            ("in.arrow", "out.parquet"),
            ("in.parquet", "out.arrows"),
        ] {
            let folder = Folder::new();
            let input = folder.write_batch(from, &want, 4);
            let output = folder.path(to);
            run(source_options(&input), sink_options(&output)).unwrap();
            let got = read_batch(&output);
            assert_eq!(got.num_columns(), want.num_columns() + 1);
            for (index, field) in want.schema().fields().iter().enumerate() {
                assert_eq!(got.schema().field(index), field.as_ref(), "{from} to {to}");
                assert_eq!(got.column(index), want.column(index), "{from} to {to}: {field}");
            }
            assert_eq!(got.schema().metadata()["origin"], "test");
            assert_eq!(read_vectors(&output).len(), TEXTS.len());
        }
    }
}

#[test]
fn dictionaries_that_change_become_values_in_an_arrow_file() {
    let folder = Folder::new();
    let want = rich(Arc::new(TEXTS.iter().copied().collect::<DictionaryArray<Int32Type>>()));
    let input = folder.write_batch("in.parquet", &want, 2);
    let output = folder.path("out.arrow");
    run(source_options(&input), sink_options(&output)).unwrap();
    let got = read_batch(&output);
    assert_eq!(got.schema().field(0).data_type(), &DataType::Utf8);
    let values = arrow::compute::cast(want.column(0), &DataType::Utf8).unwrap();
    assert_eq!(got.column(0), &values);
}

#[test]
fn dictionaries_of_views_become_views_in_parquet() {
    let folder = Folder::new();
    let keys = Int32Array::from(vec![Some(1), None, Some(0)]);
    let labels = DictionaryArray::new(keys, Arc::new(StringViewArray::from(vec!["x", "y"])));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
    let batch =
        RecordBatch::try_from_iter([("label", Arc::new(labels) as ArrayRef), ("text", texts)]);
    let input = folder.write_batch("in.arrow", &batch.unwrap(), 2);
    let want: ArrayRef = Arc::new(StringViewArray::from(vec![Some("y"), None, Some("x")]));
    for extension in ["parquet", "arrow", "arrows", "jsonl"] {
        let output = folder.path(&format!("out.{extension}"));
        run(source_options(&input), sink_options(&output)).unwrap();
        match extension {
            "jsonl" => assert_eq!(read_jsonl(&output)[2]["label"], "x"),
            "parquet" => assert_eq!(read_batch(&output).column(0), &want),
            _ => {
                let values = arrow::compute::cast(read_batch(&output).column(0), want.data_type());
                assert_eq!(&values.unwrap(), &want, "{extension}");
            }
        }
    }
}

#[test]
fn jsonl_objects_come_back_as_written() {
    let folder = Folder::new();
    let cases = [
        (r#"{"text":"a"}"#, r#"{"text":"a","embedding":[0.0,1.0,0.1]}"#),
        // Order, spaces, digits beyond f64 and u64, escapes and repeated keys all stay.
        (
            r#" { "z" : 123456789012345678901234567890, "x":1.10, "text":"a", "u":"\u00e9\/" } "#,
            concat!(
                r#"{ "z" : 123456789012345678901234567890, "x":1.10, "text":"a", "#,
                r#""u":"\u00e9\/" ,"embedding":[0.0,1.0,0.1]}"#
            ),
        ),
        (
            r#"{"k":1,"k":2,"nest":{"embedding":[{}]},"text":"a","id":"mine"}"#,
            concat!(
                r#"{"k":1,"k":2,"nest":{"embedding":[{}]},"text":"a","id":"mine","#,
                r#""embedding":[0.0,1.0,0.1]}"#
            ),
        ),
    ];
    for (line, want) in cases {
        // Blank lines are no rows; the last line needs no end.
        let input = folder.write("in.jsonl", format!("\n  \r\n{line}\r\n\n"));
        let output = folder.path("out.jsonl");
        run(source_options(&input), sink_options(&output)).unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap(), format!("{want}\n"));
    }
}

#[test]
fn jsonl_shows_its_columns_in_the_first_chunk() {
    let folder = Folder::new();
    let input = folder.write(
        "in.jsonl",
        r#"{"b":true,"i":1,"f":1,"mixed":1,"never":null,"list":[],"deep":{"a":null},"text":"a"}
{"b":null,"i":-2,"f":0.5,"mixed":"x","list":[1,2],"deep":{"a":[1.5],"b":"y"},"text":"b"}
{"big":18446744073709551615,"text":"c"}
{"i":3,"f":7,"mixed":2.50,"never":"late","list":[3],"deep":{"b":"z"},"text":"d"}"#,
    );
    let output = folder.path("out.parquet");
    run(source_options(&input), sink_options(&output)).unwrap();
    let batch = read_batch(&output);
    let schema = batch.schema();
    let types: Vec<_> =
        schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
    assert_eq!(
        types[..9],
        [
            "b: Boolean",
            "i: Int64",
            "f: Float64",
            "mixed: Utf8",
            "never: Utf8",
            "list: List(Int64)",
            "deep: Struct(\"a\": List(Float64), \"b\": Utf8)",
            "text: Utf8",
            "big: UInt64",
        ]
    );
    let strings = |name: &str| batch.column_by_name(name).unwrap().clone();
    let want = StringArray::from(vec![Some("1"), Some("x"), None, Some("2.50")]);
    assert_eq!(strings("mixed").as_ref(), &want);
    let want = StringArray::from(vec![None, None, None, Some("late")]);
    assert_eq!(strings("never").as_ref(), &want);
}

#[test]
fn whole_numbers_of_jsonl_keep_every_digit_in_columns() {
    let folder = Folder::new();
    let cases = [
        // Hashes: half of them are above the greatest `Int64`.
        ("1234567890123456789", "12345678901234567891", "UInt64"),
        ("-1", "12345678901234567891", "Utf8"),
        ("9007199254740993", "1.5", "Utf8"),
        ("9007199254740992", "1.5", "Float64"),
        ("-9223372036854775808", "9223372036854775807", "Int64"),
        // Beyond 64 bits they stay as they are written, as does what no double comes near to.
        ("1", "18446744073709551616", "Utf8"),
        ("-9223372036854775809", "1.5", "Utf8"),
        ("1e400", "123456789012345678901234567890", "Utf8"),
    ];
    for (first, second, data_type) in cases {
        let row = |n: &str| format!("{{\"n\":{n},\"text\":\"a\"}}\n");
        let input = folder.write("in.jsonl", row(first) + &row(second));
        let output = folder.path("out.arrow");
        run(source_options(&input), sink_options(&output)).unwrap();
        let batch = read_batch(&output);
        assert_eq!(batch.schema().field(0).data_type().to_string(), data_type);
        let value = |row| array_value_to_string(batch.column(0), row).unwrap();
        let want = if data_type == "Float64" { format!("{first}.0") } else { first.to_owned() };
        assert_eq!((value(0), value(1)), (want, second.to_owned()));
    }
    // A later number that its column would round does not fit.
    let floats = "{\"n\":0.5,\"text\":\"a\"}\n".repeat(3);
    let input = folder.write("in.jsonl", floats + "{\"n\":9007199254740993,\"text\":\"a\"}\n");
    let error = run(source_options(&input), sink_options(&folder.path("o.arrow"))).unwrap_err();
    assert!(error.to_string().contains("field 'n': 9007199254740993"), "{error}");
    // Nor does a later one beyond 64 bits; the first chunk, whose columns these are, is full.
    for (first, later) in [("1", "18446744073709551616"), ("0.5", "1e400")] {
        let rows = format!("{{\"n\":{first},\"text\":\"a\"}}\n").repeat(4096);
        let input = folder.write("in.jsonl", rows + &format!("{{\"n\":{later},\"text\":\"\"}}\n"));
        let error = run(source_options(&input), sink_options(&folder.path("o.arrow"))).unwrap_err();
        let says = ["line 4097", &format!("field 'n': {later} would change")];
        assert!(says.iter().all(|says| error.to_string().contains(says)), "{error}");
    }
}

#[test]
fn of_a_repeated_key_the_last_value_counts() {
    let folder = Folder::new();
    let rows = "{\"n\":1,\"text\":\"a\",\"n\":7,\"text\":\"b\"}\n";
    let input = folder.write("in.jsonl", rows);
    let output = folder.path("out.arrow");
    run(source_options(&input), sink_options(&output)).unwrap();
    let batch = read_batch(&output);
    let value = |column| array_value_to_string(batch.column_by_name(column).unwrap(), 0).unwrap();
    assert_eq!((value("n"), value("text")), ("7".to_owned(), "b".to_owned()));
    assert_eq!(*batch.column_by_name("n").unwrap().data_type(), DataType::Int64);
}

#[test]
fn times_of_a_named_zone_are_written_as_json_in_utc() {
    let folder = Folder::new();
    let times = TimestampMicrosecondArray::from(vec![Some(1_500_000), None]);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    for (zone, want) in [
        ("UTC", "1970-01-01T00:00:01.500Z"),
        ("Europe/Berlin", "1970-01-01T00:00:01.500Z"),
        ("+02:00", "1970-01-01T02:00:01.500+02:00"),
    ] {
        let times: ArrayRef = Arc::new(times.clone().with_timezone(zone));
        let field = Arc::new(Field::new("at", times.data_type().clone(), true));
        let deep: ArrayRef = Arc::new(StructArray::from(vec![(field, times.clone())]));
        let columns = [("at", times), ("deep", deep), ("text", text.clone())];
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.map(|(name, column)| (name, column, true)),
        );
        let input = folder.write_batch("in.parquet", &batch.unwrap(), 2);
        let output = folder.path("out.jsonl");
        run(source_options(&input), sink_options(&output)).unwrap();
        let rows = read_jsonl(&output);
        assert_eq!((&rows[0]["at"], &rows[0]["deep"]["at"]), (&json!(want), &json!(want)));
        assert_eq!((&rows[1]["at"], &rows[1]["deep"]["at"]), (&json!(null), &json!(null)));
    }
}

#[test]
fn a_type_that_parquet_has_not_is_an_error() {
    let folder = Folder::new();
    let fields = [(0, Arc::new(Field::new("n", DataType::Int64, true)))].into_iter().collect();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let union = UnionArray::try_new(fields, vec![0].into(), None, vec![numbers]).unwrap();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let batch = RecordBatch::try_from_iter([("u", Arc::new(union) as ArrayRef), ("text", text)]);
    let input = folder.write_batch("in.arrow", &batch.unwrap(), 1);
    let output = folder.path("out.parquet");
    let error = run(source_options(&input), sink_options(&output)).unwrap_err();
    assert!(error.to_string().contains("write arrow or jsonl"), "{error}");
    assert!(!output.exists());
}

#[test]
fn inputs_without_rows_give_outputs_without_rows() {
    let folder = Folder::new();
    let empty = sample().slice(0, 0);
    let inputs = [
        (folder.write("in.txt", ""), 3),
        (folder.write("in.jsonl", "\n \n"), 2),
        (folder.write("in.csv", "n,text,score\n"), 4),
        (folder.write_batch("in.parquet", &empty, 1), 4),
        (folder.write_batch("in.arrow", &empty, 1), 4),
        (folder.write_batch("in.arrows", &empty, 1), 4),
    ];
    for (input, columns) in inputs {
        for extension in ["jsonl", "arrow", "arrows", "parquet", "npy"] {
            let output = folder.path(&format!("out.{extension}"));
            let chunks = run(source_options(&input), sink_options(&output)).unwrap();
            assert!(chunks.is_empty());
            match extension {
                "jsonl" => assert_eq!(fs::read(&output).unwrap(), b""),
                "npy" => assert_eq!(read_npy(&output), ("0, 3".to_owned(), vec![])),
                _ => {
                    let batch = read_batch(&output);
                    assert_eq!((batch.num_rows(), batch.num_columns()), (0, columns));
                }
            }
        }
    }
}

#[test]
fn chunks_end_at_either_limit() {
    let folder = Folder::new();
    let texts: Vec<String> = (0..20).map(|n| format!("{n:0100}")).collect();
    let batch = RecordBatch::try_from_iter([(
        "text",
        Arc::new(StringArray::from_iter_values(&texts)) as ArrayRef,
    )])
    .unwrap();
    let jsonl: String = texts.iter().map(|text| format!("{{\"text\":\"{text}\"}}\n")).collect();
    for input in [
        folder.write("in.txt", texts.join("\n")),
        folder.write("in.jsonl", jsonl),
        folder.write("in.csv", format!("text\n{}", texts.join("\n"))),
        folder.write_batch("in.parquet", &batch, 20),
        folder.write_batch("in.arrow", &batch, 20),
    ] {
        let mut options = source_options(&input);
        options.limits = ChunkLimits { rows: 6, bytes: 1 << 20, row_bytes: 1 << 10 };
        let by_rows = run(options.clone(), sink_options(&folder.path("o.npy"))).unwrap();
        assert_eq!(by_rows, [6, 6, 6, 2], "{}", input.display());
        options.limits = ChunkLimits { rows: 100, bytes: 350, row_bytes: 1 << 10 };
        let by_bytes = run(options, sink_options(&folder.path("o.npy"))).unwrap();
        assert!(by_bytes.iter().all(|rows| *rows <= 4), "{}: {by_bytes:?}", input.display());
        assert_eq!(by_bytes.iter().sum::<usize>(), 20);
    }
}

#[test]
fn sources_know_their_size_and_place() {
    let folder = Folder::new();
    let batch = sample();
    let lines = folder.write("in.txt", "a\nb\nc\nd\n");
    let mut source = open_source(source_options(&lines)).unwrap();
    assert_eq!((source.total_rows(), source.total_bytes()), (None, Some(8)));
    assert_eq!(source.schema(), &SourceSchema::Texts);
    source.next_chunk().unwrap();
    assert_eq!(source.bytes_read(), 6);

    let csv = folder.write("in.csv", "text\na\n");
    let mut source = open_source(source_options(&csv)).unwrap();
    assert_eq!(source.total_bytes(), Some(7));
    while source.next_chunk().unwrap().is_some() {}
    assert_eq!(source.bytes_read(), 7);

    for name in ["in.arrow", "in.arrows"] {
        let arrow = folder.write_batch(name, &batch, 3);
        let mut source = open_source(source_options(&arrow)).unwrap();
        while source.next_chunk().unwrap().is_some() {}
        assert_eq!(source.total_bytes(), Some(source.bytes_read()), "{name}");
    }

    let parquet = folder.write_batch("in.parquet", &batch, 3);
    let source = open_source(source_options(&parquet)).unwrap();
    assert_eq!((source.total_rows(), source.total_bytes()), (Some(8), None));
}

#[test]
fn formats_can_be_given_instead_of_extensions() {
    let folder = Folder::new();
    let input = folder.write("data", "{\"text\":\"a\"}\n");
    let output = folder.path("vectors");
    let mut source = source_options(&input);
    source.format = Some(SourceFormat::Jsonl);
    let mut sink = sink_options(&output);
    sink.format = Some(fletcher_io::SinkFormat::Npy);
    assert_eq!(sink.target, SinkTarget::Path(output.clone()));
    run(source, sink).unwrap();
    assert_eq!(read_npy(&output).0, "1, 3");
}

#[test]
fn references_are_read_back_from_what_sinks_write() {
    let folder = Folder::new();
    let input = folder.write_batch("in.arrow", &sample(), 3);
    let want: Vec<_> = (0..)
        .zip(TEXTS)
        .map(|(row, text)| ReferenceRow { text: text.into(), vector: vector(row, text).into() })
        .collect();
    for extension in ["jsonl", "parquet", "arrow", "arrows"] {
        let output = folder.path(&format!("out.{extension}"));
        run(source_options(&input), sink_options(&output)).unwrap();
        assert_eq!(read_reference(SourceInput::Path(output), None).unwrap(), want, "{extension}");
    }
    for (content, want) in [
        ("{\"text\":\"a\"}", "row 1: the object has no key \"embedding\" or \"vector\""),
        ("{\"text\":\"a\",\"vector\":[1,null]}", "row 1: the vector is not a list of numbers"),
        (
            "{\"text\":\"a\",\"vector\":[1]}\n{\"text\":\"b\",\"vector\":[1,2]}",
            "row 2: the vector has 2 numbers, the first has 1",
        ),
    ] {
        let path = folder.write("bad.jsonl", content);
        let error = read_reference(SourceInput::Path(path), None).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn a_million_rows_stream_through() {
    let rows = 1_000_000;
    let mut options = source_options(&PathBuf::new());
    options.limits = ChunkLimits::default();
    let folder = Folder::new();
    let input = folder.write("in.txt", "short row\n".repeat(rows));
    options.input = SourceInput::Path(input);
    let output = folder.path("out.npy");
    let chunks = run(options, sink_options(&output)).unwrap();
    assert_eq!(chunks.iter().sum::<usize>(), rows);
    let (shape, values) = read_npy(&output);
    assert_eq!(shape, "1000000, 3");
    assert!(values.chunks(DIM).enumerate().all(|(row, vector)| vector[0] == row as f32));
}
