//! What becomes of a client that is refused while it is still sending.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Running, Setup};
use fletcher_server::HttpConfig;

/// A server that takes bodies of a kilobyte.
fn server() -> Running {
    let mut setup = Setup::default();
    setup.server.limits = HttpConfig { body_bytes: 1000, ..HttpConfig::default() };
    setup.start()
}

/// A connection on which a body of so many bytes was announced, and 64 KiB of it sent.
fn sending(server: &Running, path: &str, headers: &str, bytes: usize) -> TcpStream {
    let mut client = TcpStream::connect(server.address()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n{headers}\r\n");
    client.write_all(head.as_bytes()).unwrap();
    if headers.is_empty() {
        client.write_all(&[b' '; 64 << 10]).unwrap();
    }
    client
}

/// The status line and headers of the next answer, its body passed over.
fn answer(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    client.read_exact(&mut vec![0; length]).unwrap();
    head
}

#[test]
fn a_refusal_reaches_who_is_still_sending() {
    let server = server();
    for (path, status) in [("/embed", "413"), ("/v1/embeddings", "413"), ("/nowhere", "404")] {
        let bytes = 4 << 20;
        let mut client = sending(&server, path, "", bytes);
        // The answer does not wait for the rest, and the rest finds nothing broken.
        assert!(answer(&mut client).starts_with(&format!("HTTP/1.1 {status}")), "{path}");
        std::thread::sleep(Duration::from_millis(100));
        client.write_all(&vec![b' '; bytes - (64 << 10)]).expect("the rest is taken");
        client.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(answer(&mut client).starts_with("HTTP/1.1 200"), "{path}: the connection goes on");
    }
}

#[test]
fn nobody_is_heard_out_for_ever() {
    let mut server = server();
    let is_broken = |error: std::io::Error| {
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
    };
    // A byte now and then.
    let mut slow = sending(&server, "/embed", "", 1 << 30);
    answer(&mut slow);
    let start = Instant::now();
    let end = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(50));
        slow.write_all(b" ")
    });
    let end = end.take(200).find_map(Result::err);
    assert!(end.is_some_and(is_broken) && start.elapsed() < Duration::from_secs(6));
    // As much as it can.
    let mut fast = sending(&server, "/embed", "", 1 << 30);
    answer(&mut fast);
    let part = vec![b' '; 1 << 20];
    let sent = std::iter::repeat_with(|| fast.write_all(&part)).take_while(Result::is_ok).count();
    assert!((4..64).contains(&sent), "{sent} MiB");
    // One that waits to be asked for its body is told no before it sends any.
    let mut polite = sending(&server, "/embed", "expect: 100-continue\r\n", 1 << 30);
    let start = Instant::now();
    assert!(answer(&mut polite).starts_with("HTTP/1.1 413"));
    assert!(polite.read_to_end(&mut Vec::new()).is_ok());
    assert!(start.elapsed() < Duration::from_secs(1));
    // Those that are left do not keep the server from stopping.
    let mut idle = sending(&server, "/embed", "", 1 << 30);
    answer(&mut idle);
    let start = Instant::now();
    server.signal_stop();
    server.wait();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
