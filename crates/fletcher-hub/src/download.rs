//! One file: from its address to a complete, checked blob in the cache.
//!
//! Bytes are appended to `<etag>.incomplete`, which outlives a dropped connection and the process
//! itself; the next attempt asks only for the rest. The tag is a checksum of the whole content, so
//! a partial file can never be continued with another file's bytes unnoticed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use ureq::http::{Method, Response};

use crate::cache::{RepoCache, create_parent};
use crate::client::{Ask, Client, bad_answer, header, network_error};
use crate::error::HubError;

/// Large enough that system calls cost nothing, small enough for a smooth progress bar.
const CHUNK_BYTES: usize = 128 << 10;

/// Fetches a file of a commit into the cache, unless it is there.
pub(crate) fn fetch_file(
    client: &Client<'_>,
    cache: &RepoCache,
    commit: &str,
    file: &str,
) -> Result<(), HubError> {
    if cache.snapshot(commit).join(file).is_file() {
        return Ok(());
    }
    let url = client.file_url(commit, file);
    let facts = client.patience().retry(|| remote_facts(client, &url, file))?;
    let etag = facts.etag.as_str();
    let _lock = cache.lock(etag, client.progress())?;
    let blob = cache.blob(etag);
    if !blob.is_file() {
        create_parent(&blob)?;
        let incomplete = cache.blob(&format!("{etag}.incomplete"));
        Download { client, url: &url, file, size_bytes: facts.size_bytes }.run(&incomplete)?;
        check(&incomplete, file, etag)?;
        fs::rename(&incomplete, &blob)
            .map_err(|source| HubError::io("put in place", &blob, source))?;
        client.progress().finish();
    }
    cache.link(commit, file, etag)
}

/// What the hub says about a file before its bytes.
struct RemoteFacts {
    /// The checksum of the content, and the name of its blob: SHA-256 for large files (kept in
    /// Git LFS), Git's SHA-1 of the blob for others.
    etag: String,
    /// Absent where the hub does not say.
    size_bytes: Option<u64>,
}

fn remote_facts(client: &Client<'_>, url: &str, file: &str) -> Result<RemoteFacts, HubError> {
    // A large file is a redirect to a content network. The redirect itself carries the facts, and
    // the network knows its own tag only.
    let ask = Ask { method: Method::HEAD, url, from_byte: 0, file: Some(file), leave_hub: false };
    let response = client.ask(&ask)?;
    let etag = header(&response, "x-linked-etag").or_else(|| header(&response, ETAG.as_str()));
    let etag = etag.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
    let etag = etag
        .filter(|tag| {
            !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
        .ok_or_else(|| bad_answer(url, "the answer has no usable ETag header"))?;
    let own_length = (!response.status().is_redirection()).then_some(CONTENT_LENGTH.as_str());
    let size = header(&response, "x-linked-size").or_else(|| header(&response, own_length?));
    Ok(RemoteFacts { etag: etag.to_owned(), size_bytes: size.and_then(|size| size.parse().ok()) })
}

/// The transfer of one file.
struct Download<'a> {
    client: &'a Client<'a>,
    url: &'a str,
    file: &'a str,
    size_bytes: Option<u64>,
}

impl Download<'_> {
    /// Completes the partial file, which may be absent, over as many connections as it takes.
    fn run(&self, incomplete: &Path) -> Result<(), HubError> {
        let io_error = |source| HubError::io("write", incomplete, source);
        let mut partial = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(incomplete)
            .map_err(io_error)?;
        let mut have_bytes = partial.seek(SeekFrom::End(0)).map_err(io_error)?;
        if self.size_bytes.is_some_and(|size_bytes| have_bytes > size_bytes) {
            have_bytes = rewind(&mut partial).map_err(io_error)?;
        }
        self.client.progress().start(self.file, self.size_bytes);
        self.client.progress().advance(have_bytes);
        let mut patience = self.client.patience();
        while self.size_bytes != Some(have_bytes) {
            let before_bytes = have_bytes;
            match self.append(&mut partial, &mut have_bytes, incomplete) {
                Ok(()) => break,
                Err(error) => {
                    if have_bytes > before_bytes {
                        patience.restore();
                    }
                    patience.pause(error)?;
                }
            }
        }
        // The rename that follows must not reach the disk before the bytes do.
        partial.sync_data().map_err(io_error)
    }

    /// Asks for what is missing and appends it; `have_bytes` counts also when this fails.
    fn append(
        &self,
        partial: &mut File,
        have_bytes: &mut u64,
        incomplete: &Path,
    ) -> Result<(), HubError> {
        let io_error = |source| HubError::io("write", incomplete, source);
        let ask = Ask {
            method: Method::GET,
            url: self.url,
            from_byte: *have_bytes,
            file: Some(self.file),
            leave_hub: true,
        };
        let mut response = self.client.ask(&ask)?;
        if *have_bytes > 0 && !continues_at(&response, *have_bytes) {
            // The server sends all of it, or another part, or has nothing to send after what we
            // have; each time the partial file is of no use.
            *have_bytes = rewind(partial).map_err(io_error)?;
            self.client.progress().start(self.file, self.size_bytes);
            if response.status().as_u16() != 200 {
                response = self.client.ask(&Ask { from_byte: 0, ..ask })?;
            }
        }
        let end_bytes = self.size_bytes.or_else(|| {
            let rest: u64 = header(&response, CONTENT_LENGTH.as_str())?.parse().ok()?;
            have_bytes.checked_add(rest)
        });
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        while end_bytes != Some(*have_bytes) {
            let rest = end_bytes.map_or(u64::MAX, |end_bytes| end_bytes - *have_bytes);
            let wanted = usize::try_from(rest).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            let read = match body.read(&mut chunk[..wanted]) {
                Ok(0) if end_bytes.is_none() => break,
                Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                other => other,
            };
            let read = read.map_err(|error| network_error(self.url, ureq::Error::Io(error)))?;
            partial.write_all(&chunk[..read]).map_err(io_error)?;
            *have_bytes += read as u64;
            self.client.progress().advance(read as u64);
        }
        Ok(())
    }
}

/// Whether the answer is the rest of the file from this byte on.
fn continues_at(response: &Response<Body>, from_byte: u64) -> bool {
    let range = header(response, CONTENT_RANGE.as_str());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    response.status().as_u16() == 206 && start == Some(from_byte.to_string().as_str())
}

/// Empties the file; returns its new length.
fn rewind(partial: &mut File) -> io::Result<u64> {
    partial.set_len(0)?;
    partial.seek(SeekFrom::Start(0))
}

/// Compares a complete file with the checksum in its tag and deletes it when they differ. A tag
/// that is no checksum (some mirrors make their own) proves nothing and is let through.
fn check(path: &Path, file: &str, etag: &str) -> Result<(), HubError> {
    let is_hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
    let actual = match etag.len() {
        64 if is_hex => digest::<Sha256>(path, false),
        40 if is_hex => digest::<Sha1>(path, true),
        _ => return Ok(()),
    };
    let actual = actual.map_err(|source| HubError::io("read", path, source))?;
    if actual.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    fs::remove_file(path).map_err(|source| HubError::io("delete", path, source))?;
    Err(HubError::Checksum { file: file.to_owned(), expected: etag.to_owned(), actual })
}

/// The checksum of a file in hexadecimal; Git puts a header with the length before the content.
fn digest<D: Digest>(path: &Path, git_header: bool) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = D::new();
    if git_header {
        digest.update(format!("blob {}\0", file.metadata()?.len()));
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => digest.update(&chunk[..read]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
