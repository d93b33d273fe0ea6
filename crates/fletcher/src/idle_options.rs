//! Options that would do nothing in the run that they were typed for: refused by name, since
//! whoever typed one expects something of it.
//!
//! Only what was typed. A variable of the environment is there for every run on a machine, and a
//! line of `serve`'s file for every way in which it is started, so these may be idle.

use clap::ArgMatches;
use clap::parser::ValueSource;
use fletcher_backend::DeviceChoice;

use crate::failure::Failure;

/// Options of a command that do something only in some runs.
struct Rule {
    /// `None` for every command that has them.
    command: Option<&'static str>,
    options: &'static [&'static str],
    /// Whether they do something in this run.
    useful: fn(&ArgMatches) -> bool,
    /// Why they do nothing.
    idle: &'static str,
}

const RULES: [Rule; 7] = [
    Rule {
        command: None,
        options: &["device_memory"],
        useful: |m| {
            let device = m.get_one::<DeviceChoice>("device");
            !matches!(device, Some(DeviceChoice::Cpu | DeviceChoice::Accelerate))
        },
        idle: "the device has no memory of its own",
    },
    Rule {
        command: Some("bench"),
        options: &["column", "rounds"],
        useful: |m| has(m, "text"),
        idle: "no file of texts is embedded without --text",
    },
    Rule {
        command: Some("bench"),
        options: &["batch_size", "seq_len"],
        useful: |m| has(m, "sizes") || has(m, "soak") || m.get_flag("pair") || bench_default(m),
        idle: "no sequences are embedded without --sizes or --soak",
    },
    Rule {
        command: Some("bench"),
        options: &["latency_tokens"],
        useful: |m| m.get_flag("latency") || bench_default(m),
        idle: "no single text is measured without --latency",
    },
    Rule {
        command: Some("serve"),
        options: &[
            "spill",
            "spill_mb",
            "forward_vector_column",
            "forward_ca",
            "forward_token",
            "forward_timeout",
        ],
        useful: |m| has(m, "forward"),
        idle: "nothing is sent on without --forward",
    },
    Rule {
        command: Some("serve"),
        options: &["otlp_protocol", "otlp_headers", "otlp_service", "otlp_ratio"],
        useful: |m| has(m, "otlp_endpoint"),
        idle: "no traces are sent without --otlp-endpoint",
    },
    Rule {
        command: Some("serve"),
        options: &["cors_origin", "public_metrics"],
        useful: |m| has(m, "http") || !has(m, "flight"),
        idle: "HTTP is not served where --flight is given without --http",
    },
];

/// Refuses what was typed for a command and would do nothing.
///
/// # Errors
/// The first such option, and why.
pub(crate) fn refuse(command: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = |id: &&&str| {
        let known = matches.try_contains_id(id).is_ok();
        known && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    for rule in RULES.iter().filter(|rule| rule.command.is_none_or(|name| name == command)) {
        if let Some(id) = rule.options.iter().find(typed).filter(|_| !(rule.useful)(matches)) {
            return Err(Failure::Input {
                message: format!("--{} does nothing here: {}", id.replace('_', "-"), rule.idle),
                hint: Some(format!("leave it out, or see `fletcher {command} --help`")),
            });
        }
    }
    Ok(())
}

/// Whether an option has a value, wherever it is from.
fn has(matches: &ArgMatches, id: &str) -> bool {
    matches.try_contains_id(id).is_ok_and(|given| given)
}

/// Whether `bench` was asked for nothing in particular, and so runs some of everything.
fn bench_default(matches: &ArgMatches) -> bool {
    let asked = ["sizes", "text", "soak"].iter().any(|id| has(matches, id));
    !asked && !matches.get_flag("latency") && !matches.get_flag("pair")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    fn refused(line: &str) -> Option<String> {
        let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let (command, matches) = matches.subcommand().unwrap();
        match refuse(command, matches) {
            Ok(()) => None,
            Err(Failure::Input { message, .. }) => Some(message),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_nothing_is_named() {
        for (line, name) in [
            ("fletcher embed a --device cpu --device-memory 9", "--device-memory"),
            ("fletcher info", ""),
            ("fletcher embed a --device cuda --device-memory 9", ""),
            ("fletcher embed a --device-memory 9", ""),
            ("fletcher bench --rounds 2", "--rounds"),
            ("fletcher bench --column c --sizes 9", "--column"),
            ("fletcher bench --text f --rounds 2 --column c", ""),
            ("fletcher bench --text f --seq-len 9", "--seq-len"),
            ("fletcher bench --latency --batch-size 9", "--batch-size"),
            ("fletcher bench --seq-len 9 --batch-size 9 --latency-tokens 9", ""),
            ("fletcher bench --pair --batch-size 9", ""),
            ("fletcher bench --pair --latency-tokens 9", "--latency-tokens"),
            ("fletcher bench --soak 1s --latency-tokens 9", "--latency-tokens"),
            ("fletcher bench --soak 1s --latency --latency-tokens 9", ""),
            ("fletcher serve --spill d", "--spill"),
            ("fletcher serve --spill d --forward grpc://a:1 --dataset d", ""),
            ("fletcher serve --forward-token t", "--forward-token"),
            ("fletcher serve --otlp-ratio 0.5", "--otlp-ratio"),
            ("fletcher serve --otlp-ratio 0.5 --otlp-endpoint http://a:1", ""),
            ("fletcher serve --flight a:1 --cors-origin *", "--cors-origin"),
            ("fletcher serve --flight a:1 --http a:2 --cors-origin *", ""),
            ("fletcher serve --public-metrics", ""),
        ] {
            let said = refused(line);
            assert_eq!(said.is_some(), !name.is_empty(), "{line}: {said:?}");
            let expected = format!("{name} does nothing here");
            assert!(said.is_none_or(|said| said.starts_with(&expected)), "{line}");
        }
    }

    /// A misspelt identifier would never be found typed.
    #[test]
    fn every_option_of_a_rule_is_one() {
        let cli = Cli::command();
        for rule in &RULES {
            let command = cli.find_subcommand(rule.command.unwrap_or("embed")).unwrap();
            for id in rule.options {
                assert!(command.get_arguments().any(|arg| arg.get_id() == id), "{id}");
            }
        }
    }
}
