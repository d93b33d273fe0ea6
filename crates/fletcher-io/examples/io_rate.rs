//! How fast rows are read and written when vectors cost nothing: the bound that files set to
//! `fletcher embed`. `THREADS` read and write ahead on each side; 0 is what the machine would get.
//!
//! ```text
//! cargo run --release -p fletcher-io --example io_rate -- THREADS INPUT DIM [OUTPUT]...
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Write, stdout};
use std::time::{Duration, Instant};

use fletcher_io::{
    Chunk, ChunkLimits, OnError, SinkOptions, SinkTarget, SourceInput, SourceOptions, Vectors,
    create_sink, open_source,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, input, dim, outputs @ ..] = &arguments[..] else {
        return Err("usage: io_rate THREADS INPUT DIM [OUTPUT]...".into());
    };
    let (threads, dim) = (threads.parse()?, dim.parse()?);
    let input = SourceOptions {
        input: SourceInput::Path(input.into()),
        format: None,
        text_column: "text".to_owned(),
        on_error: OnError::Fail,
        limits: ChunkLimits::default(),
        threads,
    };
    read(&input, |_, _| Ok(())).and_then(|(rows, spent, _)| report("read", rows, spent))?;
    for output in outputs {
        let source = open_source(input.clone())?;
        let sink = SinkOptions {
            target: SinkTarget::Path(output.into()),
            format: None,
            dim,
            vector_column: None,
            on_error: OnError::Fail,
            metadata: BTreeMap::new(),
            input: None,
            threads,
        };
        let mut sink = create_sink(sink, source.schema())?;
        drop(source);
        let (rows, _, mut spent) = read(&input, |chunk, spent| {
            let vectors = Vectors { dim, values: noise(chunk.len() * dim), errors: Vec::new() };
            let start = Instant::now();
            sink.write(chunk, vectors)?;
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

/// All rows through `each`; gives their number, the time of reading and that of `each`.
fn read(
    input: &SourceOptions,
    mut each: impl FnMut(Chunk, &mut Duration) -> Result<(), Box<dyn Error>>,
) -> Result<(usize, Duration, Duration), Box<dyn Error>> {
    let mut source = open_source(input.clone())?;
    let (mut rows, mut reading, mut writing) = (0, Duration::ZERO, Duration::ZERO);
    loop {
        let start = Instant::now();
        let chunk = source.next_chunk()?;
        reading += start.elapsed();
        let Some(chunk) = chunk else { return Ok((rows, reading, writing)) };
        rows += chunk.len();
        each(chunk, &mut writing)?;
    }
}

/// Numbers that compress as badly as vectors do.
fn noise(count: usize) -> Vec<f32> {
    let mut state = count as u32 | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state as f32 / u32::MAX as f32 - 0.5) * 0.2
    };
    (0..count).map(next).collect()
}

fn report(what: &str, rows: usize, spent: Duration) -> Result<(), Box<dyn Error>> {
    let rate = rows as f64 / spent.as_secs_f64();
    writeln!(stdout(), "{what}: {rows} rows in {spent:.2?}, {rate:.0} rows/s")?;
    Ok(())
}
