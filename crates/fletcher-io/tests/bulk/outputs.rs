//! Outputs appear whole or not at all.

use std::fs;
use std::io::Read as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Date32Array, Date64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use fletcher_io::{
    OnError, SinkError, SinkOptions, SourceInput, Vectors, create_sink, open_source,
};

use crate::support::*;

const EXTENSIONS: [&str; 5] = ["jsonl", "arrow", "arrows", "parquet", "npy"];

#[test]
fn an_abandoned_sink_leaves_the_old_file_and_no_other() {
    for extension in EXTENSIONS {
        let folder = Folder::new();
        let input = folder.write("in.txt", "a\nb\nc\nd\n");
        let name = format!("out.{extension}");
        let output = folder.write(&name, "old");
        let mut source = open_source(source_options(&input)).unwrap();
        let mut sink = create_sink(sink_options(&output), source.schema()).unwrap();
        let chunk = source.next_chunk().unwrap().unwrap();
        let vectors = vectors(&chunk);
        sink.write(chunk, vectors).unwrap();
        let partial: Vec<_> =
            folder.names().into_iter().filter(|name| name.ends_with(".partial")).collect();
        assert_eq!(partial.len(), 1, "{extension}");
        assert!(partial[0].starts_with(&format!(".{name}.")), "{partial:?}");
        drop(sink);
        assert_eq!(folder.names(), ["in.txt", name.as_str()]);
        assert_eq!(fs::read_to_string(&output).unwrap(), "old");
    }
}

#[test]
fn a_finished_sink_replaces_the_old_file() {
    for extension in EXTENSIONS {
        let folder = Folder::new();
        let input = folder.write("in.txt", "a\n");
        let output = folder.write(&format!("out.{extension}"), "old");
        run(source_options(&input), sink_options(&output)).unwrap();
        assert_ne!(fs::read(&output).unwrap(), b"old");
        assert_eq!(folder.names().len(), 2);
    }
}

#[test]
fn an_output_that_cannot_be_is_refused_before_any_work() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "a\n");
    let options =
        |name: &str| SinkOptions { input: Some(input.clone()), ..sink_options(&folder.path(name)) };
    fs::create_dir(folder.path("folder.npy")).unwrap();
    let skipping = SinkOptions { on_error: OnError::Skip, ..options("out.npy") };
    for (options, want) in [
        (options("out.xyz"), "unknown format \"xyz\""),
        (options("out"), "unknown format \"\""),
        (options("folder.npy"), "it is a folder"),
        (options("absent/out.npy"), "cannot write"),
        (skipping, "npy cannot hold a row without a vector"),
    ] {
        let source = open_source(source_options(&input)).unwrap();
        let error = create_sink(options, source.schema()).map(drop).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let jsonl = folder.write("in.jsonl", "{\"text\":\"a\"}\n");
    let same = SinkOptions { input: Some(jsonl.clone()), ..sink_options(&jsonl) };
    let error = run(source_options(&jsonl), same).unwrap_err();
    assert!(matches!(error, Failure::Sink(SinkError::OutputIsInput { .. })), "{error}");
}

/// Also where threads make what is written: the disk's error comes through, not one of theirs.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_as_such() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "a\n".repeat(5000));
    for extension in ["jsonl", "arrow", "arrows", "parquet"] {
        let output = folder.path(&format!("out.{extension}"));
        std::os::unix::fs::symlink("/dev/full", &output).unwrap();
        let error = run(source_options(&input), sink_options(&output)).unwrap_err();
        let full = matches!(&error, Failure::Sink(SinkError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::StorageFull);
        assert!(full, "{extension}: {error}");
    }
}

#[test]
fn shapes_that_do_not_match_are_refused() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "a\nb\n");
    for extension in EXTENSIONS {
        let output = folder.path(&format!("out.{extension}"));
        let mut source = open_source(source_options(&input)).unwrap();
        let mut sink = create_sink(sink_options(&output), source.schema()).unwrap();
        let chunk = source.next_chunk().unwrap().unwrap();
        for (dim, values, errors) in [(DIM, 5, 0), (2, 6, 0), (DIM, 6, 1)] {
            let (values, errors) = (vec![0.0; values], vec![None; errors]);
            let error = sink.write(chunk.clone(), Vectors { dim, values, errors }).unwrap_err();
            assert!(matches!(error, SinkError::Shape { .. }), "{error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn links_and_permissions_are_kept() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    let folder = Folder::new();
    let input = folder.write("in.txt", "a\n");
    let target = folder.write("target.npy", "old");
    let link = folder.path("link.npy");
    symlink(&target, &link).unwrap();
    run(source_options(&input), sink_options(&link)).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(read_npy(&target).0, "1, 3");
    assert_eq!(fs::metadata(&target).unwrap().mode(), fs::metadata(&input).unwrap().mode());
    // What was private stays so, whatever the umask makes of new files.
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    run(source_options(&input), sink_options(&link)).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o600);
    // The umask applies to a new file.
    let new = folder.path("new.npy");
    run(source_options(&input), sink_options(&new)).unwrap();
    assert_eq!(fs::metadata(&new).unwrap().mode(), fs::metadata(&input).unwrap().mode());
    // A link to a file that is not there yet.
    let (early, late) = (folder.path("early.npy"), folder.path("late.npy"));
    symlink("late.npy", &early).unwrap();
    run(source_options(&input), sink_options(&early)).unwrap();
    assert!(fs::symlink_metadata(&early).unwrap().is_symlink());
    assert_eq!(read_npy(&late).0, "1, 3");
}

/// Named pipes stand for all streams: standard output takes the same way.
#[cfg(unix)]
mod pipes {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::thread;

    fn make_pipe(folder: &Folder, name: &str) -> PathBuf {
        let path = folder.path(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    fn read_in_background(path: &Path) -> thread::JoinHandle<Vec<u8>> {
        let path = path.to_owned();
        thread::spawn(move || fs::read(path).unwrap())
    }

    #[test]
    fn streams_get_what_files_get() {
        let folder = Folder::new();
        let input = folder.write_batch("in.arrow", &sample(), 3);
        for extension in EXTENSIONS {
            let pipe = make_pipe(&folder, &format!("pipe.{extension}"));
            let reader = read_in_background(&pipe);
            run_once(source_options(&input), sink_options(&pipe)).unwrap();
            let file = folder.path(&format!("file.{extension}"));
            run_once(source_options(&input), sink_options(&file)).unwrap();
            let got = folder.write(&format!("got.{extension}"), reader.join().unwrap());
            assert_eq!(read_vectors(&got), read_vectors(&file), "{extension}");
        }
    }

    #[test]
    fn inputs_may_be_pipes_in_every_format() {
        let folder = Folder::new();
        for name in ["in.parquet", "in.arrow", "in.arrows"] {
            let file = folder.write_batch(name, &sample(), 3);
            let bytes = fs::read(file).unwrap();
            let pipe = make_pipe(&folder, &format!("pipe-{name}"));
            let writer = {
                let pipe = pipe.clone();
                thread::spawn(move || fs::write(pipe, bytes).unwrap())
            };
            let output = folder.path("out.npy");
            run_once(source_options(&pipe), sink_options(&output)).unwrap();
            writer.join().unwrap();
            assert_eq!(read_npy(&output).0, "8, 3", "{name}");
        }
    }

    #[test]
    fn a_reader_that_goes_is_a_closed_pipe() {
        let folder = Folder::new();
        for extension in EXTENSIONS {
            let pipe = make_pipe(&folder, &format!("pipe.{extension}"));
            let reader = {
                let pipe = pipe.clone();
                thread::spawn(move || {
                    let mut byte = [0];
                    fs::File::open(pipe).unwrap().read_exact(&mut byte).unwrap();
                })
            };
            let mut source = source_options(&pipe);
            source.input = SourceInput::Texts(vec!["some text".to_owned(); 100_000]);
            source.limits.rows = 5_000;
            let error = run_once(source, sink_options(&pipe)).unwrap_err();
            assert!(matches!(error, Failure::Sink(SinkError::ClosedPipe)), "{extension}: {error}");
            reader.join().unwrap();
        }
    }
}

/// Parquet's dates are days; milliseconds would come out as plain numbers.
#[test]
fn dates_in_milliseconds_are_days_in_parquet() {
    const DAY: i64 = 86_400_000;
    let folder = Folder::new();
    let batch = |at: i64| {
        let dates = Date64Array::from(vec![Some(0), None, Some(at)]);
        let field = Arc::new(Field::new("at", DataType::Date64, true));
        let deep = StructArray::from(vec![(field, Arc::new(dates.clone()) as ArrayRef)]);
        let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
        let (dates, deep): (ArrayRef, ArrayRef) = (Arc::new(dates), Arc::new(deep));
        let columns = [("at", dates, true), ("deep", deep, true), ("text", text, true)];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    let input = folder.write_batch("in.arrow", &batch(-19_000 * DAY), 3);
    let output = folder.path("out.parquet");
    run(source_options(&input), sink_options(&output)).unwrap();
    let read = read_batch(&output);
    let days: ArrayRef = Arc::new(Date32Array::from(vec![Some(0), None, Some(-19_000)]));
    assert_eq!(read.column(0), &days);
    assert_eq!(read.column(1).as_struct().column(0), &days);
    // A time of day is not cut off.
    let input = folder.write_batch("in.arrow", &batch(DAY + 1), 3);
    let error = run(source_options(&input), sink_options(&output)).unwrap_err();
    assert!(error.to_string().contains("\"at\" has dates (date64) with a time of day"), "{error}");
    run(source_options(&input), sink_options(&folder.path("out.arrow"))).unwrap();
}
