//! What several threads read is what one reads. ([`run`] compares the two for every other test.)

use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, ListArray, StringArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use fletcher_io::{ChunkLimits, SourceOptions, open_source};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{WriterProperties, WriterVersion};

use crate::support::*;

/// Rows of every kind of column that is skipped in a way of its own: plain, of a dictionary, and
/// lists, whose pages do not say how many rows they have.
fn rows(count: i64) -> RecordBatch {
    let texts = (0..count).map(|row| (row % 11 != 3).then(|| format!("text {row}")));
    let kinds = (0..count).map(|row| (row % 5 != 0).then_some(["a", "b", "c"][row as usize % 3]));
    let lists = (0..count).map(|row| (row % 7 != 1).then(|| (0..row % 6).map(Some)));
    RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from_iter_values(0..count)) as ArrayRef),
        ("text", Arc::new(StringArray::from_iter(texts))),
        ("kind", Arc::new(kinds.collect::<DictionaryArray<Int32Type>>())),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
    ])
    .unwrap()
}

#[test]
fn parquet_of_many_pages_and_groups() {
    let folder = Folder::new();
    let batch = rows(700);
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let input = folder.path("in.parquet");
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_data_page_row_count_limit(9)
            .set_write_batch_size(4)
            .build();
        let file = File::create(&input).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        for start in (0..700).step_by(150) {
            writer.write(&batch.slice(start, 150.min(700 - start))).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
        for rows in [1, 7, 40, 151, 699, 5000] {
            let mut options = source_options(&input);
            options.limits = ChunkLimits { rows, ..ChunkLimits::default() };
            let output = folder.path("out.arrow");
            let chunks = run_skipping(options, sink_options(&output)).unwrap();
            assert!(chunks[..chunks.len() - 1].iter().all(|&chunk| chunk == rows), "{chunks:?}");
            let read = read_batch(&output);
            let kinds = arrow::compute::cast(batch.column(2), read.column(2).data_type()).unwrap();
            assert_eq!(read.column(0), batch.column(0), "{rows} rows at once");
            assert_eq!(read.column(1), batch.column(1), "{rows} rows at once");
            assert_eq!(read.column(2), &kinds, "{rows} rows at once");
            assert_eq!(read.column(3), batch.column(3), "{rows} rows at once");
        }
    }
}

/// Whoever stops in the middle of a file leaves no thread waiting for ever.
#[test]
fn threads_end_with_their_source() {
    let folder = Folder::new();
    let lines = "{\"text\":\"a row\"}\n".repeat(100_000);
    let inputs =
        [folder.write("in.jsonl", lines), folder.write_batch("in.parquet", &rows(3000), 100)];
    let readers = || {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "fletcher-read").count()
    };
    for input in inputs {
        let options = SourceOptions {
            threads: 3,
            on_error: fletcher_io::OnError::Skip,
            ..source_options(&input)
        };
        let mut source = open_source(options).unwrap();
        for _ in 0..5 {
            source.next_chunk().unwrap().unwrap();
        }
        drop(source);
    }
    // Other tests have threads of that name too, but not for long.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while readers() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} threads are left", readers());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
