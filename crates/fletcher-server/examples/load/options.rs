//! What the command line says.

use std::path::PathBuf;

/// The options of every command; each uses its part.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) command: String,
    pub(crate) program: PathBuf,
    pub(crate) model: String,
    pub(crate) seconds: f64,
    pub(crate) texts: usize,
    /// Most words of a text.
    pub(crate) words: usize,
    pub(crate) rounds: usize,
    pub(crate) requests: usize,
    pub(crate) seed: u64,
    pub(crate) peer: Option<String>,
    /// The folder that the peer reads, if it is not Fletcher's.
    pub(crate) peer_model: Option<String>,
    /// Fletcher's number formats beside the peer, separated by commas.
    pub(crate) precisions: String,
    /// How many times the peer's rate Fletcher's must be.
    pub(crate) times: f64,
    pub(crate) record: Option<PathBuf>,
    /// For `fletcher serve`.
    pub(crate) serve: Vec<String>,
    /// As it was given, for the record.
    pub(crate) line: String,
}

/// A word of the command line without the folders of the machine that it was given on: a record is
/// for others.
pub(crate) fn bare(word: &str) -> &str {
    match word.starts_with('/') {
        true => word.trim_end_matches('/').rsplit('/').next().unwrap_or(word),
        false => word,
    }
}

impl Options {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let words: Vec<String> = words.collect();
        let line = words.iter().map(|word| bare(word)).collect::<Vec<_>>().join(" ");
        let mut words = words.into_iter();
        let command = words.next().ok_or("give a command: overhead, lanes, overload, …")?;
        let mut options = Self {
            command,
            program: "target/release/fletcher".into(),
            model: "default".into(),
            seconds: 10.0,
            texts: 8_192,
            words: 400,
            rounds: 5,
            requests: 10_000,
            seed: 1,
            peer: None,
            peer_model: None,
            precisions: "f32".into(),
            times: 1.0,
            record: None,
            serve: Vec::new(),
            line,
        };
        while let Some(word) = words.next() {
            if word == "--" {
                options.serve = words.collect();
                break;
            }
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            let bad = |_| format!("{word} {value}: that is no number");
            match word.as_str() {
                "--program" => options.program = value.into(),
                "--model" => options.model = value,
                "--seconds" => options.seconds = value.parse().map_err(|_| bad(()))?,
                "--texts" => options.texts = value.parse().map_err(|_| bad(()))?,
                "--words" => options.words = value.parse().map_err(|_| bad(()))?,
                "--rounds" => options.rounds = value.parse().map_err(|_| bad(()))?,
                "--requests" => options.requests = value.parse().map_err(|_| bad(()))?,
                "--seed" => options.seed = value.parse().map_err(|_| bad(()))?,
                "--peer" => options.peer = Some(value),
                "--peer-model" => options.peer_model = Some(value),
                "--precisions" => options.precisions = value,
                "--times" => options.times = value.parse().map_err(|_| bad(()))?,
                "--record" => options.record = Some(value.into()),
                _ => return Err(format!("there is no option {word}")),
            }
        }
        Ok(options)
    }
}
