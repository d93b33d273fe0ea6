//! `load`: a server asked harder than any client would, and a record of what it did.
//!
//! ```text
//! cargo build --release
//! cargo run --release -p fletcher-server --example load -- overhead
//! ```
//!
//! | command | what is measured or tried |
//! |---|---|
//! | `overhead` | texts per second of `fletcher embed`, of HTTP (base64; decimal) and of Flight, in turns |
//! | `lanes` | how long a single text takes, alone and while bulk requests saturate the server |
//! | `overload` | ten times the capacity for a minute: who is refused how fast, and the memory |
//! | `compare` | TEI's router beside Fletcher, both over HTTP |
//! | `fuzz` | damaged requests of every dialect, and clients that misbehave |
//!
//! Options: `--program FILE` (Fletcher's), `--model NAME`, `--seconds N`, `--texts N`, `--words N`,
//! `--rounds N`, `--requests N`, `--seed N`, `--record FILE`; for `compare` `--peer URL|FILE`,
//! `--peer-model FOLDER`, `--precisions f32,bf16,int8` and `--times N`; and after `--` options for
//! `fletcher serve`. The exit code is 1 when something that must hold does not.

mod attack;
mod compare;
mod flight;
mod fuzz;
mod hostile;
mod http;
mod lanes;
mod measure;
mod mutate;
mod options;
mod overhead;
mod overload;
mod seeds;
mod server;
mod texts;

use std::process::ExitCode;

use options::Options;
use serde_json::Value;

/// What a command found out.
pub(crate) struct Outcome {
    /// The numbers.
    pub(crate) numbers: Value,
    /// What did not hold, if anything.
    pub(crate) failures: Vec<String>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command prints its result")]
fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("threads for the clients");
    let before = measure::Busy::now();
    let outcome = runtime.block_on(async {
        match options.command.as_str() {
            "overhead" => overhead::run(&options).await,
            "lanes" => lanes::run(&options).await,
            "overload" => overload::run(&options).await,
            "compare" => compare::run(&options).await,
            "fuzz" => fuzz::run(&options).await,
            other => Err(format!("there is no command `{other}`").into()),
        }
    });
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let record = measure::record(&options, &before, &outcome);
    let text = serde_json::to_string_pretty(&record).unwrap_or_default();
    println!("{text}");
    if let Some(file) = &options.record
        && let Err(error) = std::fs::write(file, text + "\n")
    {
        eprintln!("{}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    for failure in &outcome.failures {
        eprintln!("does not hold: {failure}");
    }
    if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
