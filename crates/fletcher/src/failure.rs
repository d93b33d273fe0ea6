//! How the program ends when it does not end well: one sentence, perhaps a hint, one exit code.

use std::error::Error;
use std::process::ExitCode;

use fletcher_core::ModelError;
use fletcher_core::backend::BackendError;
use fletcher_core::embedder::EmbedError;
use fletcher_hub::HubError;
use fletcher_io::{SinkError, SourceError};
use fletcher_server::ServeError;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The user can mend it: exit code 2.
    Input { message: String, hint: Option<String> },
    /// The work failed: exit code 1.
    Work { message: String },
    /// The reader of our output left, as `head` does: nothing to say, and no failure.
    ClosedPipe,
    /// The user pressed Ctrl-C or the system asked us to stop: 128 + the signal's number.
    Interrupted {
        signal: i32,
        /// Whether whoever reads our output has got a part of it.
        in_part: bool,
    },
}

impl Failure {
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Failure::Input { message: message.into(), hint: None }
    }

    pub(crate) fn work(message: impl Into<String>) -> Self {
        Failure::Work { message: message.into() }
    }

    /// Prints the failure and turns it into the process's exit code.
    #[expect(clippy::print_stderr, reason = "the one place where failures are told")]
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Failure::Input { message, hint } => {
                eprintln!("error: {message}");
                if let Some(hint) = hint {
                    eprintln!("hint: {hint}");
                }
                ExitCode::from(2)
            }
            Failure::Work { message } => {
                eprintln!("error: {message}");
                ExitCode::from(1)
            }
            Failure::ClosedPipe => ExitCode::SUCCESS,
            Failure::Interrupted { signal, in_part } => {
                match in_part {
                    true => eprintln!("interrupted: the output ends early"),
                    false => eprintln!("interrupted: nothing was left at the output path"),
                }
                ExitCode::from(128u8.saturating_add(signal.clamp(0, 127) as u8))
            }
        }
    }
}

/// An error with the causes that its own text does not already tell.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        let hint = match &error {
            ModelError::Backend(BackendError::Absent { .. }) => Some(
                "`fletcher info` lists the devices of this machine; none is chosen in another's place",
            ),
            ModelError::Backend(BackendError::NoPrecision { .. }) => None,
            ModelError::Backend(_) => return Failure::work(chain(&error)),
            ModelError::UnknownArchitecture { .. } => {
                Some("Fletcher reads the model from its folder; this family is not built in")
            }
            ModelError::MissingTensor { .. } | ModelError::Shape { .. } => {
                Some("the weights and config.json do not belong together, or the file is cut")
            }
            ModelError::Safetensors { .. } => Some("download or copy the file again"),
            _ => None,
        };
        Failure::Input { message: chain(&error), hint: hint.map(str::to_owned) }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        match error.is_outage() {
            true => Failure::work(chain(&error)),
            false => Failure::input(chain(&error)),
        }
    }
}

impl From<EmbedError> for Failure {
    fn from(error: EmbedError) -> Self {
        match &error {
            EmbedError::UnknownPrompt { .. } => Failure::input(error.to_string()),
            EmbedError::Backend(_) => Failure::work(chain(&error)),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match &error {
            ServeError::Probe { .. } | ServeError::Spill { .. } => Failure::work(error.to_string()),
            _ => Failure::input(error.to_string()),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        // Every one of these is the input's fault, an unreadable path included.
        Failure::input(chain(&error))
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        match &error {
            SinkError::ClosedPipe => Failure::ClosedPipe,
            SinkError::Io { .. } | SinkError::Shape { .. } => Failure::work(chain(&error)),
            _ => Failure::input(chain(&error)),
        }
    }
}
