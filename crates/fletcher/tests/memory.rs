//! What a process holds that has loaded the model inside and waits. The bounds are for a build
//! without optimisation; a release build is measured by `bench/compare/footprint.py`.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// KiB in memory, of the program's file (code, constants, the model), and of no file: heap and
/// stacks.
fn resident_kib(child: &Child) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    let (mut of_program, mut of_none) = (0, 0);
    let mut owner = "";
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Rss:", kib, _] if owner == env!("CARGO_BIN_EXE_fletcher") => {
                of_program += kib.parse::<u64>().unwrap();
            }
            ["Rss:", kib, _] if owner.is_empty() || owner == "[heap]" => {
                of_none += kib.parse::<u64>().unwrap();
            }
            // A mapping begins with its addresses, access, offset, device, inode and owner.
            [addresses, _, _, _, _, ..] if addresses.contains('-') => {
                owner = words.get(5).copied().unwrap_or_default();
            }
            _ => {}
        }
    }
    (of_program, of_none)
}

fn fletcher(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fletcher"))
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_loaded_process_waits_in_little_memory() {
    let mut child = fletcher(&["bench", "--device", "cpu", "--threads", "2", "--pair"]);
    let mut requests = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    requests.write_all(b"{\"memory\": true}\n").unwrap();
    answers.next().unwrap().unwrap();
    let (program, own) = resident_kib(&child);
    drop(requests);
    assert!(child.wait().unwrap().success());
    // 18.2 MiB if what starting needed stays.
    assert!(program < 12 << 10, "{program} KiB of the program");
    // 2,812 KiB with what loading leaves in the heap; the weights alone are 1,536.
    assert!(own < 2600, "{own} KiB of its own");
}

#[test]
fn a_server_that_is_ready_waits_in_little_memory() {
    let mut child = fletcher(&["serve", "--device", "cpu", "--http", "127.0.0.1:0"]);
    let log = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = log.map(Result::unwrap).any(|line| line.contains("ready"));
    assert!(ready);
    let (program, own) = resident_kib(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    // 26.5 MiB and 3,056 KiB otherwise.
    assert!(program < 12 << 10, "{program} KiB of the program");
    assert!(own < 2900, "{own} KiB of its own");
}
