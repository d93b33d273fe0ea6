//! A queue on disk: what was appended is there after a crash, until it is acknowledged.
//!
//! Segments of records, each with its length, a checksum and its number of rows. An append returns
//! after `fsync`. What is acknowledged is noted in a small file that is replaced, not synced: if
//! the note is lost, records are sent again, which their stable ids make harmless.
//!
//! After a crash the last record may be half there; nobody was told that it is, so it is cut off
//! (and kept in a file beside). Damage anywhere else is an error that names the place: going on
//! would lose rows silently.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::ServeError;

/// First bytes of a segment.
const MAGIC: &[u8; 8] = b"FLSPILL1";
/// Length, checksum, rows.
const HEAD_BYTES: u64 = 12;
/// A segment is closed when it is this long, so that it can be removed when it is done.
const SEGMENT_BYTES: u64 = 32 << 20;
/// Longest record.
const RECORD_BYTES_MAX: u64 = 1 << 30;

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    segment: u64,
    offset: u64,
}

/// One record, read back.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) payload: Vec<u8>,
    pub(crate) rows: u32,
    /// The place after it.
    pub(crate) end: Position,
}

/// The queue of one folder.
#[derive(Debug)]
pub(crate) struct Spill {
    folder: PathBuf,
    /// Length of each segment.
    segments: BTreeMap<u64, u64>,
    writer: Option<File>,
    acked: Position,
    pending_rows: u64,
    limit_bytes: u64,
    /// Held as long as this lives: two processes must not share a queue.
    _lock: File,
}

/// Why a record cannot be appended.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// The queue is as large as it may be.
    Full,
    /// The disk failed.
    Io(io::Error),
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        AppendError::Io(error)
    }
}

/// What a look at a segment found.
struct Scan {
    /// Where the good records end.
    good: u64,
    rows_after: u64,
    damaged: bool,
}

impl Spill {
    /// Opens the queue, with whatever an earlier process left.
    pub(crate) fn open(folder: &Path, limit_bytes: u64) -> Result<Self, ServeError> {
        let failed = |path: &Path, message: String| ServeError::Spill {
            path: path.display().to_string(),
            message,
        };
        let io = |error: io::Error| failed(folder, error.to_string());
        fs::create_dir_all(folder).map_err(io)?;
        let lock = File::create(folder.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|_| failed(folder, "another process uses this queue".into()))?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            numbers.extend(stem.and_then(|stem| u64::from_str_radix(stem, 16).ok()));
        }
        numbers.sort_unstable();
        let first = numbers.first().copied().unwrap_or(0);
        let start = Position { segment: first, offset: MAGIC.len() as u64 };
        let mut acked =
            read_note(&folder.join("acked")).filter(|note| *note >= start).unwrap_or(start);
        let (mut segments, mut pending_rows) = (BTreeMap::new(), 0);
        for &number in &numbers {
            let path = segment_path(folder, number);
            let from = if number == acked.segment { acked.offset } else { 0 };
            let scan = scan(&path, if number < acked.segment { u64::MAX } else { from })
                .map_err(|error| failed(&path, error.to_string()))?;
            if scan.damaged && Some(&number) != numbers.last() {
                let message = format!(
                    "a record is damaged at byte {}; restore the file or move it away",
                    scan.good
                );
                return Err(failed(&path, message));
            }
            if scan.damaged {
                cut(&path, scan.good).map_err(|error| failed(&path, error.to_string()))?;
                tracing::warn!(file = %path.display(), at = scan.good, "a half-written record was cut off");
            }
            if number == acked.segment {
                acked.offset = acked.offset.min(scan.good.max(MAGIC.len() as u64));
            }
            segments.insert(number, scan.good.max(MAGIC.len() as u64));
            pending_rows += scan.rows_after;
        }
        Ok(Self {
            folder: folder.to_owned(),
            segments,
            writer: None,
            acked,
            pending_rows,
            limit_bytes,
            _lock: lock,
        })
    }

    /// Rows that wait to be acknowledged.
    pub(crate) fn pending_rows(&self) -> u64 {
        self.pending_rows
    }

    /// Bytes that wait to be acknowledged.
    pub(crate) fn pending_bytes(&self) -> u64 {
        let after = self.segments.range(self.acked.segment..);
        let total: u64 = after.map(|(_, length)| length).sum();
        total.saturating_sub(self.acked.offset)
    }

    /// The place after the last acknowledged record.
    pub(crate) fn acked(&self) -> Position {
        self.acked
    }

    /// Writes a record; when this returns it survives a crash.
    pub(crate) fn append(&mut self, payload: &[u8], rows: u32) -> Result<(), AppendError> {
        let length = HEAD_BYTES + payload.len() as u64;
        if self.pending_bytes() + length > self.limit_bytes || length > RECORD_BYTES_MAX {
            return Err(AppendError::Full);
        }
        let number = self.writable()?;
        let (Some(writer), Some(end)) = (self.writer.as_mut(), self.segments.get_mut(&number))
        else {
            return Err(AppendError::Io(io::Error::other("no segment is open")));
        };
        let mut record = Vec::with_capacity(length as usize);
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        record.extend_from_slice(&checksum(rows, payload).to_le_bytes());
        record.extend_from_slice(&rows.to_le_bytes());
        record.extend_from_slice(payload);
        if let Err(error) = writer.write_all(&record).and_then(|()| writer.sync_data()) {
            // What was written is cut off again; if even that fails, the next append begins a new
            // segment, and this one ends with a damaged record that is not the queue's last.
            let restored = writer.set_len(*end).and_then(|()| writer.seek(SeekFrom::Start(*end)));
            if restored.is_err() {
                self.writer = None;
            }
            return Err(error.into());
        }
        *end += length;
        self.pending_rows += u64::from(rows);
        Ok(())
    }

    /// Opens a segment that has room.
    fn writable(&mut self) -> io::Result<u64> {
        let last = self.segments.last_key_value().map(|(number, length)| (*number, *length));
        if let (Some((number, length)), Some(_)) = (last, &self.writer)
            && length < SEGMENT_BYTES
        {
            return Ok(number);
        }
        let number = last.map_or(self.acked.segment, |(number, _)| number + 1);
        let path = segment_path(&self.folder, number);
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(MAGIC)?;
        file.sync_all()?;
        File::open(&self.folder)?.sync_all()?;
        self.segments.insert(number, MAGIC.len() as u64);
        self.writer = Some(file);
        Ok(number)
    }

    /// The record at a place; `None` at the end of the queue.
    pub(crate) fn read(&self, at: Position) -> io::Result<Option<Record>> {
        let mut at = at;
        loop {
            let Some(length) = self.segments.get(&at.segment) else {
                let Some((&next, _)) = self.segments.range(at.segment..).next() else {
                    return Ok(None);
                };
                at = Position { segment: next, offset: MAGIC.len() as u64 };
                continue;
            };
            if at.offset >= *length {
                at = Position { segment: at.segment + 1, offset: MAGIC.len() as u64 };
                if self.segments.range(at.segment..).next().is_none() {
                    return Ok(None);
                }
                continue;
            }
            let mut file = File::open(segment_path(&self.folder, at.segment))?;
            file.seek(SeekFrom::Start(at.offset))?;
            let Some((payload, rows)) = read_record(&mut file, length - at.offset)? else {
                let message =
                    format!("a record is damaged: segment {:016x}, byte {}", at.segment, at.offset);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            };
            let offset = at.offset + HEAD_BYTES + payload.len() as u64;
            return Ok(Some(Record {
                payload,
                rows,
                end: Position { segment: at.segment, offset },
            }));
        }
    }

    /// Forgets the records before a place.
    pub(crate) fn ack(&mut self, to: Position, rows: u64) -> io::Result<()> {
        self.acked = self.acked.max(to);
        self.pending_rows = self.pending_rows.saturating_sub(rows);
        write_note(&self.folder, self.acked)?;
        let last = self.segments.last_key_value().map(|(number, _)| *number);
        let done: Vec<u64> = self
            .segments
            .iter()
            .map(|(number, length)| (*number, *length))
            .take_while(|(number, length)| {
                let whole = *number == self.acked.segment && *length <= self.acked.offset;
                *number < self.acked.segment
                    || (whole && *length >= SEGMENT_BYTES && Some(*number) != last)
            })
            .map(|(number, _)| number)
            .collect();
        for number in done {
            fs::remove_file(segment_path(&self.folder, number))?;
            self.segments.remove(&number);
        }
        Ok(())
    }
}

fn segment_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}.seg"))
}

fn checksum(rows: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&rows.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The next record of a segment of which `left` bytes are left; `None` when it is damaged.
fn read_record(file: &mut impl Read, left: u64) -> io::Result<Option<(Vec<u8>, u32)>> {
    let mut head = [0; HEAD_BYTES as usize];
    if left < HEAD_BYTES {
        return Ok(None);
    }
    file.read_exact(&mut head)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (length, sum, rows) = (u64::from(word(0)), word(4), word(8));
    if length > left - HEAD_BYTES {
        return Ok(None);
    }
    let mut payload = vec![0; length as usize];
    file.read_exact(&mut payload)?;
    Ok((checksum(rows, &payload) == sum).then_some((payload, rows)))
}

/// Checks every record of a segment, and counts the rows of those from `from` on.
fn scan(path: &Path, from: u64) -> io::Result<Scan> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut magic = [0; MAGIC.len()];
    let mut good = MAGIC.len() as u64;
    if length < good || file.read_exact(&mut magic).is_err() || &magic != MAGIC {
        return Ok(Scan { good: 0, rows_after: 0, damaged: true });
    }
    let mut rows_after = 0;
    while good < length {
        let Some((payload, rows)) = read_record(&mut file, length - good)? else {
            return Ok(Scan { good, rows_after, damaged: true });
        };
        if good >= from {
            rows_after += u64::from(rows);
        }
        good += HEAD_BYTES + payload.len() as u64;
    }
    Ok(Scan { good, rows_after, damaged: false })
}

/// Cuts a segment, and keeps what was cut off in a file beside.
fn cut(path: &Path, at: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.read_to_end(&mut rest)?;
    fs::write(path.with_extension("cut"), rest)?;
    if at == 0 {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(MAGIC)?;
    } else {
        file.set_len(at)?;
    }
    file.sync_all()
}

fn read_note(path: &Path) -> Option<Position> {
    let text = fs::read_to_string(path).ok()?;
    let mut parts = text.split_whitespace();
    let segment = u64::from_str_radix(parts.next()?, 16).ok()?;
    let offset = parts.next()?.parse().ok()?;
    // The last word says that the note is whole.
    (parts.next() == Some("end")).then_some(Position { segment, offset })
}

fn write_note(folder: &Path, at: Position) -> io::Result<()> {
    let new = folder.join("acked.new");
    fs::write(&new, format!("{:x} {} end\n", at.segment, at.offset))?;
    fs::rename(new, folder.join("acked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 30;

    fn open(folder: &Path) -> Spill {
        Spill::open(folder, LIMIT).unwrap()
    }

    fn drain(spill: &Spill) -> Vec<Vec<u8>> {
        let (mut at, mut found) = (spill.acked(), Vec::new());
        while let Some(record) = spill.read(at).unwrap() {
            at = record.end;
            found.push(record.payload);
        }
        found
    }

    #[test]
    fn records_survive_until_they_are_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = open(folder.path());
        assert!(spill.read(spill.acked()).unwrap().is_none());
        for n in 0..5u8 {
            spill.append(&[n; 10], 2).unwrap();
        }
        assert_eq!((spill.pending_rows(), drain(&spill).len()), (10, 5));
        let first = spill.read(spill.acked()).unwrap().unwrap();
        spill.ack(first.end, 2).unwrap();
        assert!(Spill::open(folder.path(), LIMIT).is_err(), "a queue has one user");
        drop(spill);
        let mut spill = open(folder.path());
        assert_eq!(spill.pending_rows(), 8);
        spill.append(&[9; 10], 1).unwrap();
        let found = drain(&spill);
        assert_eq!(found.iter().map(|p| p[0]).collect::<Vec<_>>(), [1, 2, 3, 4, 9]);
        // Without the note everything is sent again, and nothing is lost.
        drop(spill);
        fs::remove_file(folder.path().join("acked")).unwrap();
        assert_eq!(drain(&open(folder.path())).len(), 6);
    }

    #[test]
    fn done_segments_are_removed_and_the_size_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(folder.path(), 100 << 20).unwrap();
        let payload = vec![7; 10 << 20];
        for _ in 0..9 {
            spill.append(&payload, 1).unwrap();
        }
        assert!(matches!(spill.append(&payload, 1), Err(AppendError::Full)));
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let before = count();
        let mut at = spill.acked();
        for _ in 0..8 {
            at = spill.read(at).unwrap().unwrap().end;
            spill.ack(at, 1).unwrap();
        }
        assert!(count() < before, "segments are gone");
        spill.append(&payload, 1).unwrap();
        assert_eq!(drain(&spill).len(), 2);
    }

    /// Whatever byte the crash came at, the whole records are there and the queue goes on.
    #[test]
    fn a_half_written_record_is_cut_off() {
        let whole = tempfile::tempdir().unwrap();
        let mut spill = open(whole.path());
        spill.append(b"first", 1).unwrap();
        spill.append(b"second", 1).unwrap();
        drop(spill);
        let segment = segment_path(whole.path(), 0);
        let bytes = fs::read(&segment).unwrap();
        for length in 0..=bytes.len() {
            let folder = tempfile::tempdir().unwrap();
            fs::write(segment_path(folder.path(), 0), &bytes[..length]).unwrap();
            let mut spill = open(folder.path());
            let expected = match length {
                _ if length < 25 => 0,
                _ if length < bytes.len() => 1,
                _ => 2,
            };
            assert_eq!(drain(&spill).len(), expected, "{length}");
            spill.append(b"third", 1).unwrap();
            assert_eq!(drain(&spill).len(), expected + 1, "{length}");
            drop(spill);
            assert_eq!(drain(&open(folder.path())).len(), expected + 1, "{length}");
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = open(folder.path());
        spill.append(b"first", 1).unwrap();
        drop(spill);
        let mut spill = open(folder.path());
        spill.append(b"second", 1).unwrap();
        drop(spill);
        let path = segment_path(folder.path(), 0);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = Spill::open(folder.path(), LIMIT).unwrap_err().to_string();
        assert!(error.contains("damaged at byte 8"), "{error}");
    }
}
