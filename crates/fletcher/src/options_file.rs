//! The options of `serve` from a TOML file: keys are the long names of the flags.
//!
//! The file's values become the flags' defaults, and the command line is parsed again with them, so
//! that flags come before the environment and the environment before the file, every value is
//! checked by the flag's own rules, and a new flag needs nothing here.

use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use sha2::{Digest, Sha256};
use toml::Value;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::{config, idle_options};

/// Options that make no sense in the file, and are not printed.
const NOT_IN_FILE: [&str; 4] = ["config", "print_config", "help", "version"];

/// Options that keep others out.
const GUARDS: [&str; 5] = ["api_key", "api_key_file", "tls_cert", "tls_key", "tls_client_ca"];

/// Stands for what is not shown.
const HIDDEN: &str = "(hidden)";

/// Reads the command line, and for `serve` the file that it names.
pub(crate) fn parse() -> Result<Cli, Failure> {
    let mut matches = grammar().get_matches();
    let file = matches.subcommand_matches("serve").and_then(|m| m.get_one::<PathBuf>("config"));
    if let Some(file) = file.cloned() {
        let text = std::fs::read_to_string(&file)
            .map_err(|error| Failure::input(format!("{}: {error}", file.display())))?;
        matches = with_defaults(&file, &text)?.get_matches();
    }
    if let Some((name, command)) = matches.subcommand() {
        idle_options::refuse(name, command)?;
        refuse_empty_guards(command, is_empty_variable)?;
    }
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let (Command::Serve(args), Some(serve)) =
        (&mut cli.command, matches.subcommand_matches("serve"))
    {
        args.in_effect = in_effect(serve);
    }
    Ok(cli)
}

/// The command line's grammar. A variable that is empty counts as absent, which is what scripts
/// and manifests mean by `FLETCHER_MODEL=""`; this is the one place that decides it for options,
/// as `HubConfig::from_vars` does for the hub's variables.
fn grammar() -> clap::Command {
    without_empty_variables(Cli::command(), is_empty_variable)
}

fn is_empty_variable(arg: &clap::Arg) -> bool {
    arg.get_env().and_then(config::variable).is_some_and(|value| value.is_empty())
}

/// Refuses an empty variable of an option that keeps others out, unless the option was typed: a
/// secret that was not filled in must not open the server.
fn refuse_empty_guards(
    command: &ArgMatches,
    is_empty: impl Fn(&clap::Arg) -> bool,
) -> Result<(), Failure> {
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    let guards = serve.filter(|arg| GUARDS.contains(&arg.get_id().as_str()));
    let typed = |arg: &&clap::Arg| {
        let id = arg.get_id().as_str();
        // Of another command, which has no such option.
        let none = command.try_contains_id(id).is_err();
        none || command.value_source(id) == Some(ValueSource::CommandLine)
    };
    match guards.filter(|arg| !typed(arg)).find(|arg| is_empty(arg)) {
        None => Ok(()),
        Some(arg) => Err(Failure::Input {
            message: format!(
                "{} is empty, and what it should hold keeps others out",
                arg.get_env().unwrap_or_default().display()
            ),
            hint: Some("fill it in, or unset it to serve without".into()),
        }),
    }
}

/// The grammar without the variables that `is_empty` finds.
fn without_empty_variables(
    command: clap::Command,
    is_empty: impl Fn(&clap::Arg) -> bool + Copy,
) -> clap::Command {
    let forget = |arg: clap::Arg| match is_empty(&arg) {
        true => arg.env(Resettable::Reset),
        false => arg,
    };
    command.mut_subcommands(|command| command.mut_args(forget))
}

/// The command line's grammar with the file's values as defaults.
fn with_defaults(file: &Path, text: &str) -> Result<clap::Command, Failure> {
    let name = file.display();
    let options: toml::Table =
        text.parse().map_err(|error| Failure::input(format!("{name}: {error}")))?;
    let mut command = grammar();
    for (key, value) in options {
        let values = words(&value).ok_or_else(|| {
            Failure::input(format!(
                "{name}: `{key}` must be a text, a number, true or false, or a list of texts"
            ))
        })?;
        let id = key.replace('-', "_");
        let known = command.find_subcommand("serve").is_some_and(|serve| {
            serve
                .get_arguments()
                .any(|arg| arg.get_id() == id.as_str() && arg.get_long() == Some(&key[..]))
        });
        if !known || NOT_IN_FILE.contains(&&id[..]) {
            return Err(Failure::Input {
                message: format!("{name}: there is no option `{key}`"),
                hint: Some("keys are the long names of `fletcher serve --help`".into()),
            });
        }
        check_value(file, &key, &values)?;
        command = command
            .mut_subcommand("serve", |serve| serve.mut_arg(id, |arg| arg.default_values(values)));
    }
    Ok(command)
}

/// Lets the flag's own rules look at a value by itself, so that what is wrong with it is told of
/// the file and not of a command line that nobody typed.
fn check_value(file: &Path, key: &str, values: &[String]) -> Result<(), Failure> {
    let alone = without_empty_variables(Cli::command(), |_| true);
    let typed = values.iter().map(|value| format!("--{key}={value}"));
    let line = ["fletcher".to_owned(), "serve".to_owned()].into_iter().chain(typed);
    match alone.try_get_matches_from(line) {
        Err(error)
            if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) =>
        {
            let error = error.to_string();
            let message = error.lines().take_while(|line| !line.is_empty());
            let message = message.map(str::trim).collect::<Vec<_>>().join(" ");
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            Err(Failure::input(format!("{}: `{key}`: {message}", file.display())))
        }
        // That options need others is looked at when all are there.
        _ => Ok(()),
    }
}

fn words(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(flag) => Some(vec![flag.to_string()]),
        Value::Array(list) => list.iter().map(|item| Some(item.as_str()?.to_owned())).collect(),
        _ => None,
    }
}

/// Every option with its value, and a comment that says where it is from. Keys are shown as
/// hashes; tokens, and the values of headers, which mostly are tokens, not at all.
fn in_effect(serve: &ArgMatches) -> String {
    let mut command = Cli::command();
    command.build();
    let Some(grammar) = command.find_subcommand("serve") else { return String::new() };
    let mut text = String::new();
    for arg in grammar.get_arguments() {
        let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
        if NOT_IN_FILE.contains(&id) {
            continue;
        }
        let Ok(Some(raw)) = serve.try_get_raw(id) else { continue };
        let show = |value: &std::ffi::OsStr| {
            let value = value.to_string_lossy();
            match id {
                "api_key" if !value.starts_with("sha256:") => {
                    let digest = Sha256::digest(value.as_bytes());
                    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                    format!("sha256:{hex}")
                }
                // Nothing that is printed may let anybody in; this one has no hash to show.
                "forward_token" => HIDDEN.to_owned(),
                "otlp_headers" => match value.split_once('=') {
                    Some((name, _)) => format!("{name}={HIDDEN}"),
                    None => HIDDEN.to_owned(),
                },
                _ => value.into_owned(),
            }
        };
        let values: Vec<String> = raw.map(show).collect();
        let many = matches!(arg.get_action(), clap::ArgAction::Append);
        let value = match &values[..] {
            [only] if !many => scalar(only),
            _ => Value::Array(values.into_iter().map(Value::String).collect()),
        };
        let source = match serve.value_source(id) {
            Some(ValueSource::CommandLine) => "  # command line",
            Some(ValueSource::EnvVariable) => "  # environment",
            _ => "",
        };
        text.push_str(&format!("{long} = {value}{source}\n"));
    }
    text
}

fn scalar(text: &str) -> Value {
    match (text.parse::<i64>(), text) {
        (Ok(number), _) => Value::Integer(number),
        (_, "true") => Value::Boolean(true),
        (_, "false") => Value::Boolean(false),
        _ => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(file: &str, line: &[&str]) -> Result<crate::args::ServeArgs, String> {
        let command = with_defaults(Path::new("f.toml"), file).map_err(|f| format!("{f:?}"))?;
        let line = ["fletcher", "serve"].iter().chain(line);
        let matches = command.try_get_matches_from(line).map_err(|error| error.to_string())?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        let Command::Serve(mut args) = cli.command else { unreachable!() };
        args.in_effect = in_effect(matches.subcommand_matches("serve").unwrap());
        Ok(*args)
    }

    #[test]
    fn flags_come_before_the_file() {
        let file = "http = ['127.0.0.1:1', 'unix:/run/x']\nmax-rows = 7\npublic-metrics = true\n\
            model = './m'\nalias = 'a'\napi-key = ['secret']";
        let args = serve(file, &["--max-rows", "8"]).unwrap();
        assert_eq!((args.max_rows, args.public_metrics, args.http.len()), (8, true, 2));
        assert_eq!((&args.model.model[..], &args.alias[..]), ("./m", &["a".to_owned()][..]));
        let shown = &args.in_effect;
        assert!(shown.contains("max-rows = 8  # command line\n"), "{shown}");
        assert!(shown.contains("sha256:2bb80d53"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
        // What is printed is a file that means the same.
        let again = serve(shown, &[]).unwrap();
        assert_eq!(again.max_rows, 8);
        assert_eq!(again.http, args.http);
    }

    #[test]
    fn nothing_that_lets_anybody_in_is_shown() {
        let file = "otlp-headers = ['authorization=Bearer s3cret', 's3cret']";
        let line = ["--forward", "grpc://h:1", "--dataset", "d", "--forward-token", "s3cret"];
        let shown = serve(file, &line).unwrap().in_effect;
        assert!(shown.contains("authorization=(hidden)"), "{shown}");
        assert!(shown.contains("forward-token = \"(hidden)\""), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn an_empty_variable_is_none() {
        // Set where tests run, as is no option's; here it stands for one.
        let named = |id: &'static str, variable: &'static str| {
            Cli::command().mut_subcommand("embed", move |command| {
                command.mut_arg(id, |arg| arg.env(variable))
            })
        };
        let parse = |command: clap::Command| {
            let matches = command.try_get_matches_from(["fletcher", "embed", "a"]).unwrap();
            let embed = matches.subcommand_matches("embed").unwrap();
            embed.get_one::<String>("model").cloned().unwrap()
        };
        let path = std::ffi::OsStr::new("CARGO_MANIFEST_DIR");
        let command = named("model", "CARGO_MANIFEST_DIR");
        assert_ne!(parse(command.clone()), "default");
        let empty = |arg: &clap::Arg| arg.get_env() == Some(path);
        assert_eq!(parse(without_empty_variables(command, empty)), "default");
    }

    #[test]
    fn numbers_that_cannot_be_meant_are_refused() {
        for line in [
            ["--max-bodies-mb", "99999999999999999"],
            ["--cache-mb", "17592186044416"],
            ["--deadline", "18446744073709551615"],
        ] {
            let said = serve("", &line).unwrap_err();
            assert!(said.contains(line[1]) && said.contains(".."), "{said}");
        }
    }

    #[test]
    fn what_is_wrong_in_the_file_is_said() {
        for (file, says) in [
            ("max-rows = 0", "at least"),
            ("max_rows = 1", "no option `max_rows`"),
            ("maxrows = 1", "no option `maxrows`"),
            ("config = 'x'", "no option `config`"),
            ("http = 'nowhere'", "neither HOST:PORT"),
            ("[http]\na = 1", "must be a text"),
            ("http = ", "f.toml"),
            ("max-rows = 'x'", "f.toml: `max-rows`: invalid value 'x'"),
            ("log-level = 'loud'", "f.toml: `log-level`: invalid value 'loud'"),
            ("alias = ['a', '']", "f.toml: `alias`:"),
        ] {
            let said = serve(file, &[]).unwrap_err();
            assert!(
                said.contains(says) || says == "at least" && said.contains("from 1"),
                "{file}: {said}"
            );
        }
    }
}
