//! The program: arguments in, exit code out.
//!
//! Only this crate prints, reads the environment and exits. Data goes to standard output,
//! everything else to standard error. Exit codes: 0 done, 1 the work failed, 2 wrong usage or
//! bad input.

mod args;
mod bench;
mod commands;
mod config;
mod failure;
mod idle_options;
mod model;
mod options_file;
mod output;
mod progress;
mod signals;

use std::process::ExitCode;

fn main() -> ExitCode {
    config::quiet_vulkan_drivers();
    silence_expected_panics();
    signals::outlive_full_files();
    let cli = match options_file::parse() {
        Ok(cli) => cli,
        Err(failure) => return failure.report(),
    };
    let result = match cli.command {
        args::Command::Embed(args) => commands::embed::run(args),
        args::Command::Info(args) => commands::info::run(args),
        args::Command::Verify(args) => commands::verify::run(args),
        args::Command::Bench(args) => commands::bench::run(args),
        args::Command::Serve(args) => commands::serve::run(*args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The columnar libraries panic on some damaged files. `fletcher-io` and the server turn those
/// panics into errors; without this their messages would be printed besides.
fn silence_expected_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !fletcher_io::is_panic_expected() && !fletcher_server::is_panic_expected() {
            report(panic);
        }
    }));
}
