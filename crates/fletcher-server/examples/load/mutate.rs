//! Damage to good requests, the same for the same seed.

/// Random numbers that are the same at every run: splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a limit.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// What parsers of numbers, texts, lists and lengths have stumbled over before.
const TRAPS: [&[u8]; 20] = [
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"null",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"\":{\"\":{\"\":{\"\":",
    b"\"\\ud800\"",
    b"\"\\u0000\"",
    b"\xff\xfe\xfd",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f",
    b"\xfb\x7f\xf0\0\0\0\0\0\0",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    "\u{202e}\u{fdfa}\u{1f469}\u{200d}\u{1f469}".as_bytes(),
    b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
];

/// Longest that damage makes a request.
const LONGEST: usize = 1 << 16;

/// Damages a request in one to four places. `others` are requests to take parts from.
pub(crate) fn mutate(random: &mut Random, good: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    // Mostly one: more seldom get past the first parser.
    for _ in 0..[1, 1, 1, 2, 4][random.below(5)] {
        damage(random, &mut bytes, others);
    }
    bytes
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    let span =
        |random: &mut Random, bytes: &[u8]| at..at + random.below((bytes.len() - at).min(64) + 1);
    match random.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => drop(bytes.drain(span(random, bytes))),
        3 => bytes.truncate(at),
        4 => {
            let trap = TRAPS[random.below(TRAPS.len())];
            bytes.splice(at..at, trap.iter().copied());
        }
        5 => {
            let (trap, span) = (TRAPS[random.below(TRAPS.len())], span(random, bytes));
            bytes.splice(span, trap.iter().copied());
        }
        6 => {
            // Nesting and repetition: what recursion and quadratic code stumble over.
            let part: Vec<u8> = bytes[span(random, bytes)].to_vec();
            let times = 1 << random.below(10);
            if part.len() * times + bytes.len() < LONGEST {
                bytes.splice(at..at, part.repeat(times));
            }
        }
        7 => {
            let Some(other) = others.get(random.below(others.len())) else { return };
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            // A length or an offset that lies.
            let width = [1, 2, 4, 8][random.below(4)];
            let value = match random.below(4) {
                0 => random.next(),
                1 => u64::MAX - random.below(16) as u64,
                2 => 1 << random.below(64),
                _ => random.below(256) as u64,
            };
            let value = value.to_le_bytes();
            for (place, byte) in bytes.iter_mut().skip(at).take(width).zip(value) {
                *place = byte;
            }
        }
    }
}
