//! Sources and sinks together, as a program uses them. One test binary: linking Arrow is slow.

mod ahead;
mod bad_input;
mod outputs;
mod round_trips;
mod support;
