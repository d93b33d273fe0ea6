//! Where bytes go: a hidden temporary file that becomes the output when complete, or a stream.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::SinkError;
use crate::sink::SinkTarget;

/// Bytes held before a write: large enough to make system calls rare.
const BUFFER_BYTES: usize = 256 << 10;

/// A buffered output. Dropped before [`Output::commit`], it leaves no file.
pub(super) struct Output {
    /// The path, or "standard output".
    file: String,
    writer: BufWriter<Destination>,
}

enum Destination {
    /// A temporary file beside the path that it will have.
    Temporary {
        file: NamedTempFile,
        path: PathBuf,
    },
    /// A device or named pipe, which cannot be replaced and is written in place.
    InPlace(File),
    Stdout(io::Stdout),
}

impl Output {
    /// Opens the output, unless it is the input.
    pub(super) fn create(
        target: &SinkTarget,
        input: Option<&Path>,
        name: &str,
    ) -> Result<Self, SinkError> {
        let destination = match target {
            SinkTarget::Stdout => Destination::Stdout(io::stdout()),
            SinkTarget::Path(path) => {
                if input.is_some_and(|input| same_file(input, path)) {
                    return Err(SinkError::OutputIsInput { path: path.clone() });
                }
                Destination::at(path).map_err(|e| io_error(name, e))?
            }
        };
        let writer = BufWriter::with_capacity(BUFFER_BYTES, destination);
        Ok(Self { file: name.to_owned(), writer })
    }

    /// The name that errors give it.
    pub(super) fn name(&self) -> &str {
        &self.file
    }

    /// Whether someone may be reading along, who should see complete rows soon.
    pub(super) fn is_stream(&self) -> bool {
        !matches!(self.writer.get_ref(), Destination::Temporary { .. })
    }

    /// Replaces the first bytes of a file; not for streams.
    pub(super) fn overwrite_start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.flush()?;
        match self.writer.get_mut() {
            Destination::Temporary { file, .. } => {
                file.as_file_mut().seek(SeekFrom::Start(0))?;
                file.write_all(bytes)?;
                file.as_file_mut().seek(SeekFrom::End(0)).map(drop)
            }
            Destination::InPlace(_) | Destination::Stdout(_) => {
                Err(io::ErrorKind::NotSeekable.into())
            }
        }
    }

    /// Brings the bytes to disk and the file to its path.
    pub(super) fn commit(mut self) -> Result<(), SinkError> {
        let name = std::mem::take(&mut self.file);
        let in_name = |e| io_error(&name, e);
        self.writer.flush().map_err(in_name)?;
        match self.writer.into_inner().map_err(|e| in_name(e.into_error()))? {
            Destination::Temporary { file, path } => {
                file.as_file().sync_all().map_err(in_name)?;
                file.persist(&path).map_err(|e| in_name(e.error))?;
                sync_folder(&path);
                Ok(())
            }
            // Flushed above; a device or pipe has nothing to sync.
            Destination::InPlace(_) | Destination::Stdout(_) => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Destination {
    /// A temporary file beside `path`, or `path` itself where it cannot be replaced.
    fn at(path: &Path) -> io::Result<Self> {
        // A link stays a link: the file it leads to is replaced, or made if there is none yet.
        let path = fs::canonicalize(path).unwrap_or_else(|_| match fs::read_link(path) {
            Ok(target) => folder_of(path).join(target),
            Err(_) => path.to_owned(),
        });
        let earlier = fs::metadata(&path);
        match &earlier {
            Ok(meta) if meta.is_dir() => {
                let message = "it is a folder; name a file in it";
                return Err(io::Error::new(io::ErrorKind::IsADirectory, message));
            }
            Ok(meta) if !meta.is_file() => {
                return Ok(Self::InPlace(File::options().write(true).open(path)?));
            }
            _ => {}
        }
        let mut prefix = OsString::from(".");
        prefix.push(path.file_name().unwrap_or_default());
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        {
            // As any new file: what the umask leaves of this, not the private 0600 of a temp file.
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder_of(&path))?;
        // Who may read what is replaced may read what replaces it, and nobody else.
        if let Ok(earlier) = earlier {
            file.as_file().set_permissions(earlier.permissions())?;
        }
        Ok(Self::Temporary { file, path })
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Temporary { file, .. } => file.write(bytes),
            Self::InPlace(file) => file.write(bytes),
            Self::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Temporary { file, .. } => file.flush(),
            Self::InPlace(file) => file.flush(),
            Self::Stdout(stdout) => stdout.flush(),
        }
    }
}

/// Whether two paths lead to one existing file.
fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b && a.is_file(),
        _ => false,
    }
}

/// Makes the renaming durable where the system can; the data itself is already synced.
fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
}

/// The folder that a path is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A failing write; a closed pipe is told apart.
pub(super) fn io_error(file: &str, source: io::Error) -> SinkError {
    match source.kind() {
        io::ErrorKind::BrokenPipe => SinkError::ClosedPipe,
        _ => SinkError::Io { file: file.to_owned(), source },
    }
}
