//! How fast rows are read and written when vectors cost nothing: the bound that files set to
//! `fletcher embed`, whose reader and writer have one thread each.
//!
//! ```text
//! cargo run --release -p fletcher-io --example io_rate -- INPUT DIM [OUTPUT]...
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fletcher_io::{
    Chunk, ChunkLimits, OnError, SinkOptions, SinkTarget, SourceInput, SourceOptions, VectorsView,
    create_sink, open_source,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, dim, outputs @ ..] = &arguments[..] else {
        return Err("usage: io_rate INPUT DIM [OUTPUT]...".into());
    };
    let (input, dim) = (PathBuf::from(input), dim.parse()?);
    read(&input, |_, _| Ok(())).and_then(|(rows, spent, _)| report("read", rows, spent))?;
    for output in outputs {
        let source = open_source(source(&input))?;
        let sink = SinkOptions {
            target: SinkTarget::Path(output.into()),
            format: None,
            dim,
            vector_column: None,
            on_error: OnError::Fail,
            metadata: BTreeMap::new(),
            input: None,
        };
        let mut sink = create_sink(sink, source.schema())?;
        drop(source);
        let mut values = Vec::new();
        let (rows, _, mut spent) = read(&input, |chunk, spent| {
            noise(&mut values, chunk.len() * dim);
            let start = Instant::now();
            sink.write(chunk, VectorsView { dim, values: &values, errors: &[] })?;
            *spent += start.elapsed();
            Ok(())
        })?;
        let start = Instant::now();
        sink.finish()?;
        spent += start.elapsed();
        report(output, rows, spent)?;
    }
    Ok(())
}

fn source(input: &std::path::Path) -> SourceOptions {
    SourceOptions {
        input: SourceInput::Path(input.to_owned()),
        format: None,
        text_column: "text".to_owned(),
        on_error: OnError::Fail,
        limits: ChunkLimits::default(),
    }
}

/// All rows through `each`; gives their number, the time of reading and that of `each`.
fn read(
    input: &std::path::Path,
    mut each: impl FnMut(&Chunk, &mut Duration) -> Result<(), Box<dyn Error>>,
) -> Result<(usize, Duration, Duration), Box<dyn Error>> {
    let mut source = open_source(source(input))?;
    let (mut rows, mut reading, mut writing) = (0, Duration::ZERO, Duration::ZERO);
    loop {
        let start = Instant::now();
        let chunk = source.next_chunk()?;
        reading += start.elapsed();
        let Some(chunk) = chunk else { return Ok((rows, reading, writing)) };
        rows += chunk.len();
        each(&chunk, &mut writing)?;
    }
}

/// Numbers that compress as badly as vectors do.
fn noise(values: &mut Vec<f32>, count: usize) {
    let mut state = values.len() as u32 | 1;
    values.clear();
    values.extend((0..count).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state as f32 / u32::MAX as f32 - 0.5) * 0.2
    }));
}

fn report(what: &str, rows: usize, spent: Duration) -> Result<(), Box<dyn Error>> {
    let rate = rows as f64 / spent.as_secs_f64();
    writeln!(stdout(), "{what}: {rows} rows in {spent:.2?}, {rate:.0} rows/s")?;
    Ok(())
}
