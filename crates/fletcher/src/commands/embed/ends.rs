//! The two ends of a run: the source that rows come from, and the sink that they go to.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use fletcher_core::embedder::Embedder;
use fletcher_io::{
    ChunkLimits, OnError, Sink, SinkError, SinkFormat, SinkOptions, SinkTarget, Source,
    SourceInput, SourceOptions, SourceSchema,
};

use crate::args::EmbedArgs;
use crate::failure::Failure;

/// Where texts are looked for if nothing is said.
const TEXT_COLUMN: &str = "text";

pub(super) fn open_source(args: &EmbedArgs, on_error: OnError) -> Result<Box<dyn Source>, Failure> {
    let format = args.input_format;
    let input = match (&args.input, args.texts.is_empty()) {
        (Some(path), _) if path != Path::new("-") => SourceInput::Path(path.clone()),
        (None, false) => SourceInput::Texts(args.texts.clone()),
        _ if format.is_none() && std::io::stdin().is_terminal() => {
            return Err(Failure::Input {
                message: "no texts given".into(),
                hint: Some("fletcher embed \"a text\", or -i FILE, or pipe lines in".into()),
            });
        }
        _ => SourceInput::Stdin,
    };
    let text_column = args.column.clone().unwrap_or_else(|| TEXT_COLUMN.to_owned());
    let (limits, threads) = (ChunkLimits::default(), 0);
    let source = fletcher_io::open_source(SourceOptions {
        input,
        format,
        text_column,
        on_error,
        limits,
        threads,
    })?;
    match &args.column {
        // Whoever names a column has a file of columns, which would be embedded line by line.
        Some(column) if *source.schema() == SourceSchema::Texts => Err(Failure::Input {
            message: format!(
                "--column {column}: the input is read as plain texts, without columns"
            ),
            hint: Some("--input-format jsonl, csv, tsv, parquet or arrow says what it is".into()),
        }),
        _ => Ok(source),
    }
}

/// What is wrong with the output is told before a model is loaded.
pub(super) fn check_output(args: &EmbedArgs) -> Result<(), Failure> {
    let path = &args.output;
    if path != Path::new("-") {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let problem = match folder {
            _ if path.as_os_str().is_empty() => {
                Some(("its name is empty".to_owned(), "name a file"))
            }
            _ if path.is_dir() => Some(("it is a folder".to_owned(), "name a file in it")),
            Some(folder) if !folder.is_dir() => {
                Some((format!("there is no folder {}", folder.display()), "make the folder first"))
            }
            _ => None,
        };
        if let Some((problem, hint)) = problem {
            let message = format!("cannot write {}: {problem}", path.display());
            return Err(Failure::Input { message, hint: Some(hint.into()) });
        }
    }
    match (sink_format(args)?, &args.vector_column) {
        (SinkFormat::Npy, Some(name)) => Err(Failure::Input {
            message: format!("--vector-column {name}: npy has no columns, only the vectors"),
            hint: Some("leave it out, or write jsonl, arrow or parquet".into()),
        }),
        _ => Ok(()),
    }
}

/// The format that the output will have.
fn sink_format(args: &EmbedArgs) -> Result<SinkFormat, SinkError> {
    let path = &args.output;
    match args.output_format {
        Some(format) => Ok(format),
        None if path == Path::new("-") => Ok(SinkFormat::Jsonl),
        None => SinkFormat::from_path(path).map_err(|problem| {
            let file = path.display().to_string();
            SinkError::Format { file, problem }
        }),
    }
}

pub(super) fn create_sink(
    args: &EmbedArgs,
    on_error: OnError,
    source: &dyn Source,
    embedder: &Embedder,
) -> Result<Box<dyn Sink>, Failure> {
    let target = match args.output == Path::new("-") {
        true => SinkTarget::Stdout,
        false => SinkTarget::Path(args.output.clone()),
    };
    let model = embedder.model();
    let mut metadata = std::collections::BTreeMap::from([
        ("fletcher.model".to_owned(), model.name().to_owned()),
        ("fletcher.dim".to_owned(), embedder.dim().to_string()),
        ("fletcher.normalized".to_owned(), model.head().normalized().to_string()),
    ]);
    // The fingerprint reads every weight, so it is taken only where there is a place for it.
    let columnar = !matches!(sink_format(args)?, SinkFormat::Jsonl | SinkFormat::Npy);
    if columnar {
        metadata.insert("fletcher.fingerprint".to_owned(), model.fingerprint().to_owned());
    }
    let options = SinkOptions {
        target,
        format: args.output_format,
        dim: embedder.dim(),
        vector_column: args.vector_column.clone(),
        on_error,
        metadata,
        input: args.input.clone().filter(|path: &PathBuf| path != Path::new("-")),
        threads: 0,
    };
    Ok(fletcher_io::create_sink(options, source.schema())?)
}
