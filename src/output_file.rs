//! Output files: everything that the library and the programs write goes through here.
//!
//! A regular file is written under a temporary name beside it and renamed when it is complete, so its name always
//! refers to a whole file, the old one or the new one. The new file keeps the mode of the one it replaces, and a
//! symbolic link still points to it afterwards. A device or a pipe is written to as it is.
//!
//! A temporary file is locked while it is written. A killed process leaves it behind unlocked, and the next output in
//! that folder removes it. While one process writes a file, a second one that wants to write it is refused.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::wire::Checksum;

/// The path that errors of standard output carry.
pub const STDOUT: &str = "-";

/// End of every temporary name.
const SUFFIX: &str = ".unfinished";

/// Symbolic links that are followed before a path counts as a loop; as on Linux.
const MAX_LINKS: usize = 40;

/// A file being written.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf, // as the caller names it
    out: BufWriter<Sink>,
    temporary: Option<Temporary>, // none of a device or pipe
}

#[derive(Debug)]
enum Sink {
    File(File),
    Stdout(io::Stdout),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File(file) => file.write(bytes),
            Sink::Stdout(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::File(file) => file.flush(),
            Sink::Stdout(out) => out.flush(),
        }
    }
}

impl OutputFile {
    /// Begins the file at `path`. A regular file that is there stays until [`OutputFile::finish`].
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written to, or another process is writing the same file.
    pub fn create(path: &Path) -> Result<OutputFile> {
        let failed = |e| Error::io(path, e);
        let (sink, temporary) = match target_of(path).map_err(failed)? {
            Target::Stream => {
                let file = OpenOptions::new().append(true).open(path);
                (file.map_err(failed)?, None)
            }
            Target::Regular(target) => {
                let (temporary, file) = Temporary::file(target).map_err(failed)?;
                (file, Some(temporary))
            }
        };
        Ok(OutputFile {
            path: path.to_path_buf(),
            out: BufWriter::with_capacity(1 << 20, Sink::File(sink)),
            temporary,
        })
    }

    /// Standard output as an output file.
    pub fn stdout() -> OutputFile {
        OutputFile {
            path: STDOUT.into(),
            out: BufWriter::with_capacity(1 << 20, Sink::Stdout(io::stdout())),
            temporary: None,
        }
    }

    /// The path, as the caller named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.out.write_all(bytes);
        written.map_err(|e| Error::io(&self.path, e))
    }

    /// Completes the file: it appears under its name and replaces what was there.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file is then intact.
    pub fn finish(mut self) -> Result<()> {
        let flushed = self.out.flush();
        let finished = flushed.and_then(|()| match (self.temporary.take(), self.out.get_ref()) {
            (Some(temporary), Sink::File(file)) => {
                file.sync_all()?;
                temporary.rename()
            }
            _ => Ok(()),
        });
        finished.map_err(|e| Error::io(&self.path, e))
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a whole file: see [`OutputFile`].
///
/// # Errors
/// As [`OutputFile::create`] and [`OutputFile::finish`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::create(path)?;
    file.put(bytes)?;
    file.finish()
}

/// A folder being written, with the files in it. It appears under its name when it is complete.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf, // as the caller names it
    temporary: Temporary,
    _lock: Option<File>,
}

impl OutputFolder {
    /// Begins the folder at `path`, which must not exist or be empty.
    ///
    /// # Errors
    /// As [`OutputFolder::check`] and [`OutputFile::create`].
    pub fn create(path: &Path) -> Result<OutputFolder> {
        OutputFolder::check(path)?;
        let failed = |e| Error::io(path, e);
        let target = resolve_links(path).map_err(failed)?;
        let (temporary, lock) = Temporary::folder(target).map_err(failed)?;
        Ok(OutputFolder {
            path: path.to_path_buf(),
            temporary,
            _lock: lock,
        })
    }

    /// Checks that `path` can become a folder: nothing is there, or an empty folder.
    ///
    /// # Errors
    /// [`Error::Format`] if something is in the way.
    pub fn check(path: &Path) -> Result<()> {
        let wrong = |found: &str| {
            let what = format!("expected a new or empty folder, found {found}");
            Err(Error::format(path, what))
        };
        match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => wrong("files in it"),
            Err(_) if path.exists() => wrong("a file"),
            Err(_) => Ok(()),
        }
    }

    /// Where the file `name` of the folder is to be written.
    pub fn join(&self, name: &str) -> PathBuf {
        self.temporary.path.join(name)
    }

    /// Completes the folder: it appears under its name.
    ///
    /// # Errors
    /// [`Error::Io`]; there is then no folder.
    pub fn finish(self) -> Result<()> {
        // The rename itself replaces an empty folder on Unix; elsewhere it has to go first.
        let _ = fs::remove_dir(&self.temporary.target);
        self.temporary
            .rename()
            .map_err(|e| Error::io(&self.path, e))
    }
}

/// Locks the folder of a long piece of work, as long as the result lives. No file is made for it.
///
/// # Errors
/// [`Error::Io`] if another process holds the lock.
pub fn lock_folder(path: &Path) -> Result<Option<File>> {
    let Ok(folder) = File::open(path) else {
        return Ok(None); // not every system opens folders
    };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(Error::io(path, busy())),
        Err(TryLockError::Error(_)) => Ok(None), // nor locks them
    }
}

/// Whether two paths lead to one regular file, existing or not.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let (Ok(Target::Regular(a)), Ok(Target::Regular(b))) = (target_of(a), target_of(b)) else {
        return false;
    };
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (fs::metadata(&a), fs::metadata(&b)) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    a == b
}

/// Checks that a file can be written at `path`, without writing anything.
///
/// # Errors
/// [`Error::Io`] if it is a folder, or its folder is missing.
pub fn check(path: &Path) -> Result<()> {
    let failed = |e| Error::io(path, e);
    if let Target::Regular(target) = target_of(path).map_err(failed)? {
        let folder = fs::metadata(folder_of(&target)).map_err(failed)?;
        if !folder.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
    }
    Ok(())
}

enum Target {
    /// A file that is or will be at this path, all links followed.
    Regular(PathBuf),
    /// A device, pipe or socket, or a descriptor of a process.
    Stream,
}

fn target_of(path: &Path) -> io::Result<Target> {
    // A file behind a descriptor is someone else's: it is appended to and never replaced.
    let of_process = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"];
    if of_process.iter().any(|p| path.starts_with(p)) {
        return Ok(Target::Stream);
    }
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => Ok(Target::Stream),
        Ok(_) => fs::canonicalize(path).map(Target::Regular),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let target = resolve_links(path)?;
            let name = (target.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
            // Two spellings of the folder are one target.
            let folder = folder_of(&target);
            let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
            Ok(Target::Regular(folder.join(name)))
        }
        Err(e) => Err(e),
    }
}

/// The path that a chain of symbolic links ends at, whether something is there or not.
fn resolve_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(next) => path = folder_of(&path).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn busy() -> io::Error {
    let what = "another process is writing it; wait until that has ended";
    io::Error::new(io::ErrorKind::ResourceBusy, what)
}

/// A file or folder under a temporary name, removed unless it is renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    target: PathBuf,
}

impl Temporary {
    fn file(target: PathBuf) -> io::Result<(Temporary, File)> {
        let old = fs::metadata(&target).ok();
        let (temporary, file) = Temporary::create(target, |path| {
            let mut options = OpenOptions::new();
            #[cfg(unix)]
            if old.is_some() {
                // Nobody reads it before it has the mode of the old file.
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            }
            options.write(true).create_new(true).open(path).map(Some)
        })?;
        let file = file.expect("opened by the function above");
        if let Some(old) = old {
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                // Only root can give a file away; for all others the new file is their own.
                let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
            }
            file.set_permissions(old.permissions())?;
        }
        Ok((temporary, file))
    }

    fn folder(target: PathBuf) -> io::Result<(Temporary, Option<File>)> {
        Temporary::create(target, |path| {
            fs::create_dir(path)?;
            Ok(File::open(path).ok()) // not every system opens folders
        })
    }

    /// Makes something under a name that nothing else has, and locks it.
    fn create(
        target: PathBuf,
        make: impl Fn(&Path) -> io::Result<Option<File>>,
    ) -> io::Result<(Temporary, Option<File>)> {
        let folder = folder_of(&target);
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            let path = folder.join(temporary_name(name));
            let handle = match make(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            // Where there are no locks, nothing is taken for a leftover either.
            let lock = handle.as_ref().map_or(Ok(()), File::try_lock);
            if matches!(lock, Err(TryLockError::WouldBlock)) || !path.exists() {
                continue; // swept as a leftover before it was locked
            }
            let temporary = Temporary { path, target };
            // Dropping it on this error removes it.
            return match is_being_written(folder_of(&temporary.target), &temporary) {
                true => Err(busy()),
                false => Ok((temporary, handle)),
            };
        }
    }

    fn rename(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        // The new name outlasts a crash only once its folder is written, which not every system
        // lets a program ask for.
        if let Ok(folder) = File::open(folder_of(&self.target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename nothing has this name.
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    // Nothing better can be done about a leftover than to try.
    if fs::remove_file(path).is_err() {
        let _ = fs::remove_dir_all(path);
    }
}

/// `.NAME.RANDOM.unfinished`, which no other call gives.
fn temporary_name(name: &OsStr) -> OsString {
    let random = RandomState::new().build_hasher().finish();
    let mut full = prefix(name);
    full.push(format!("{random:016x}{SUFFIX}"));
    full
}

fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    match name.len() {
        0..200 => prefix.push(name),
        // Names have at most 255 bytes.
        _ => {
            let mut sum = Checksum::default();
            sum.update(name.as_encoded_bytes());
            prefix.push(format!("{:016x}", sum.finish()));
        }
    }
    prefix.push(".");
    prefix
}

/// Whether someone else writes the same target. Removes what killed processes left in the folder.
fn is_being_written(folder: &Path, own: &Temporary) -> bool {
    let prefix = prefix(own.target.file_name().unwrap_or_default());
    let mut found = false;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let path = entry.path();
        let special = entry.file_type().is_ok_and(|t| !t.is_file() && !t.is_dir());
        if special || !is_temporary(name.as_encoded_bytes()) || path == own.path {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        match file.try_lock() {
            Ok(()) => remove(&path),
            Err(TryLockError::WouldBlock) => {
                let length = prefix.len() + 16 + SUFFIX.len();
                let same = name
                    .as_encoded_bytes()
                    .starts_with(prefix.as_encoded_bytes());
                found |= same && name.len() == length;
            }
            Err(TryLockError::Error(_)) => {}
        }
    }
    found
}

/// Whether [`temporary_name`] can have given this name.
fn is_temporary(name: &[u8]) -> bool {
    let random = (name.strip_suffix(SUFFIX.as_bytes())).and_then(|rest| rest.split_last_chunk());
    let is_hex = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c);
    random.is_some_and(|(before, random): (_, &[u8; 16])| {
        before.starts_with(b".") && before.ends_with(b".") && random.iter().all(is_hex)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::Folder;

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let folder = Folder::new("complete");
        let path = folder.path("x");
        fs::write(&path, "old").unwrap();
        let mut file = OutputFile::create(&path).unwrap();
        file.put(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let message = OutputFile::create(&path).unwrap_err().to_string();
        assert!(message.contains("another process is writing"), "{message}");
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(OutputFile::create(&path).unwrap());
        assert_eq!(folder.names(), ["x"]);
    }

    #[test]
    fn leftovers_of_killed_processes_are_removed_and_nothing_else() {
        let folder = Folder::new("leftovers");
        let (left, left_folder) = (temporary_name("x".as_ref()), temporary_name("y".as_ref()));
        fs::write(folder.0.join(left), "left").unwrap();
        fs::create_dir(folder.0.join(&left_folder)).unwrap();
        fs::write(folder.0.join(left_folder).join("model"), "left").unwrap();
        let others = [".x.unfinished", ".x.00112233.unfinished", "unfinished"];
        for name in others {
            fs::write(folder.path(name), "someone's").unwrap();
        }
        let z = OutputFile::create(&folder.path("z")).unwrap();
        write(&folder.path("new"), b"new").unwrap();
        z.finish().unwrap();
        let mut expected = [&others[..], &["new", "z"]].concat();
        expected.sort();
        assert_eq!(folder.names(), expected);
    }

    #[test]
    fn long_names_work() {
        let folder = Folder::new("long");
        let path = folder.path(&"n".repeat(255));
        write(&path, b"a").unwrap();
        let file = OutputFile::create(&path).unwrap();
        assert!(OutputFile::create(&path).is_err());
        drop(file);
        assert_eq!(folder.names().len(), 1);
    }

    #[test]
    fn a_folder_appears_when_it_is_complete() {
        let folder = Folder::new("folder");
        let path = folder.path("out");
        fs::create_dir(&path).unwrap();
        let out = OutputFolder::create(&path).unwrap();
        write(&out.join("a"), b"a").unwrap();
        assert!(OutputFolder::create(&path).is_err(), "being written");
        assert!(!path.join("a").exists());
        out.finish().unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"a");
        assert!(OutputFolder::create(&path).is_err(), "files in it");
        drop(OutputFolder::create(&folder.path("other")).unwrap());
        assert_eq!(folder.names(), ["out"]);
    }

    #[cfg(unix)]
    #[test]
    fn modes_links_pipes_and_devices_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let folder = Folder::new("kinds");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (file, link, dangling) = (folder.path("f"), folder.path("l"), folder.path("d"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("f", &link).unwrap();
        symlink("new", &dangling).unwrap();
        write(&link, b"through the link").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"through the link");
        assert_eq!(mode(&file), 0o640);
        write(&dangling, b"new").unwrap();
        assert_eq!(fs::read(folder.path("new")).unwrap(), b"new");
        assert!(is_same_file(&file, &link) && !is_same_file(&file, &dangling));

        write(Path::new("/dev/null"), b"nothing").unwrap();
        let null = fs::metadata("/dev/null").unwrap();
        assert!(null.file_type().is_char_device());
        let full = write(Path::new("/dev/full"), b"x").unwrap_err();
        assert!(full.to_string().starts_with("/dev/full: "), "{full}");

        let pipe = folder.path("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        write(&pipe, b"through the pipe").unwrap();
        assert_eq!(reader.join().unwrap(), b"through the pipe");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

        assert!(write(&folder.0, b"x").is_err(), "a folder");
        assert!(check(&folder.0).is_err() && check(&folder.path("no/x")).is_err());
        check(&folder.path("x")).unwrap();
        symlink("loop", folder.path("loop")).unwrap();
        assert!(write(&folder.path("loop"), b"x").is_err());
    }
}
