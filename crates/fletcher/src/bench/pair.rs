//! A resident process for side-by-side measurements: rounds with a peer can alternate without
//! loading a model each time, and parsing stays outside of the measured time.
//!
//! One JSON object a line on standard input, one answer a line on standard output:
//!
//! | request | answer |
//! |---|---|
//! | `{"set": NAME, "ids": [[…], …]}` or `{"set": NAME, "texts": […]}` | `{"rows": N}` |
//! | `{"run": NAME}` | `{"seconds": S}`: all rows once |
//! | `{"run": NAME, "clients": N}` | the same with N batches of ids in flight; 1: one after the other |
//! | `{"one": NAME}` | `{"ms": […]}`: each row of texts alone, in order |
//! | `{"vectors": NAME}` | `{"rows": N, "dim": D}`, then N × D little-endian f32 |
//! | `{"memory": true}` | resident, anonymous and peak MiB |

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use fletcher_core::embedder::EmbedOptions;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::machine::Memory;
use crate::bench::workload::Workload;
use crate::failure::Failure;

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Request {
    SetIds {
        set: String,
        ids: Vec<Vec<u32>>,
    },
    SetTexts {
        set: String,
        texts: Vec<String>,
    },
    Run {
        run: String,
        clients: Option<usize>,
    },
    One {
        one: String,
    },
    Vectors {
        vectors: String,
    },
    #[expect(dead_code, reason = "a request needs a key")]
    Memory {
        memory: bool,
    },
}

/// Named inputs.
enum Input {
    Ids(Vec<Vec<u32>>),
    Texts(Vec<String>),
}

/// Answers requests until the input ends.
pub(crate) fn serve(
    workload: &Workload<'_>,
    options: &EmbedOptions,
    requests: impl BufRead,
    mut answers: impl Write,
) -> Result<(), Failure> {
    let io = |error: std::io::Error| Failure::work(format!("the pair's pipe: {error}"));
    let mut inputs = BTreeMap::new();
    for line in requests.lines() {
        let request = serde_json::from_str(&line.map_err(io)?)
            .map_err(|error| Failure::input(format!("not a request: {error}")))?;
        let (answer, bytes) = answer(workload, options, &mut inputs, request)?;
        writeln!(answers, "{answer}").map_err(io)?;
        answers.write_all(&bytes).map_err(io)?;
        answers.flush().map_err(io)?;
    }
    Ok(())
}

fn answer(
    workload: &Workload<'_>,
    options: &EmbedOptions,
    inputs: &mut BTreeMap<String, Input>,
    request: Request,
) -> Result<(Value, Vec<u8>), Failure> {
    let plain = |value: Value| Ok((value, Vec::new()));
    let set = |inputs: &mut BTreeMap<String, Input>, name, input, rows| {
        inputs.insert(name, input);
        plain(json!({"rows": rows}))
    };
    let find = |name: &str| {
        inputs.get(name).ok_or_else(|| Failure::input(format!("nothing is set as `{name}`")))
    };
    match request {
        Request::SetIds { set: name, ids } => {
            let rows = ids.len();
            set(inputs, name, Input::Ids(ids), rows)
        }
        Request::SetTexts { set: name, texts } => {
            let rows = texts.len();
            set(inputs, name, Input::Texts(texts), rows)
        }
        Request::Run { run, clients } => {
            let start = Instant::now();
            match find(&run)? {
                Input::Ids(ids) => workload.batches(ids, clients)?,
                Input::Texts(texts) => drop(workload.chunks(texts, options)?),
            }
            plain(json!({"seconds": start.elapsed().as_secs_f64()}))
        }
        Request::One { one } => {
            let Input::Texts(texts) = find(&one)? else {
                return Err(Failure::input(format!("`{one}` is not of texts")));
            };
            let mut times = Vec::with_capacity(texts.len());
            for text in texts {
                let start = Instant::now();
                workload.embedder.embed(&[text], options)?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            plain(json!({"ms": times}))
        }
        Request::Vectors { vectors } => {
            let found = match find(&vectors)? {
                Input::Ids(ids) => workload.embedder.embed_ids(ids)?,
                Input::Texts(texts) => workload.embedder.embed(texts, options)?,
            };
            let answer = json!({"rows": found.rows.len(), "dim": found.dim});
            if let Some(error) = found.rows.into_iter().find_map(Result::err) {
                return Err(Failure::input(error.to_string()));
            }
            Ok((answer, found.values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        }
        Request::Memory { .. } => plain(json!(Memory::now())),
    }
}
