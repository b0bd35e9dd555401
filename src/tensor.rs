//! Tensors: element type, shape, and who owns the bytes; no arithmetic.
//!
//! A [`Tensor`] is a cheap handle on bytes in a mapped file, in memory or in the program itself.
//! The bytes stay as the file stores them, at any alignment: kernels load
//! unaligned. Numbers are little-endian.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blt_kernels::BlockFormat;

use crate::error::{Error, Result};

mod convert;
mod dtype;
#[cfg(feature = "cli")]
mod lost_file;
mod values;

pub use convert::encode;
pub use dtype::DType;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use lost_file::exit_if_lost;
pub(crate) use values::Values;

/// How a file gets into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Load {
    /// Mapped: pages are read when touched and shared with other programs. A file system that cannot map it has it read.
    #[default]
    Map,
    /// Read as a whole into memory of our own: slower to open, and safe from changes of the file.
    Read,
}

impl std::str::FromStr for Load {
    type Err = Error;

    fn from_str(name: &str) -> Result<Load> {
        match name {
            "map" => Ok(Load::Map),
            "read" => Ok(Load::Read),
            _ => Err(Error::argument(
                "load",
                format!("expected map or read, found {name:?}"),
            )),
        }
    }
}

/// A whole file, mapped read-only ([`Load::Map`]) or read into memory.
///
/// Mapping trusts the file to stay as it is. If another process writes into it, the weights change under us; if it is
/// cut short, touching the lost part ends the program (SIGBUS on Unix). A file that is replaced by another of its name,
/// as all our writers do, stays as it was for those who have it open. [`Load::Read`] is safe from all of this.
#[derive(Debug)]
pub struct MappedFile {
    content: Content,
    path: PathBuf,
}

#[derive(Debug)]
enum Content {
    Mapped(memmap2::Mmap),
    Read(Vec<u8>),
}

impl MappedFile {
    /// Maps the file at `path`, or reads it where it cannot be mapped.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or read, [`Error::Format`] if it is empty or no regular file.
    pub fn open(path: &Path) -> Result<MappedFile> {
        MappedFile::load(path, Load::Map)
    }

    /// Opens the file at `path` in the way that `load` says.
    ///
    /// # Errors
    /// As [`MappedFile::open`].
    pub fn load(path: &Path, load: Load) -> Result<MappedFile> {
        let io = |e| Error::io(path, e);
        let kind = std::fs::metadata(path).map_err(io)?;
        if !kind.is_file() {
            let found = if kind.is_dir() {
                "a folder"
            } else {
                "a device or pipe"
            };
            return Err(Error::format(
                path,
                format!("expected a regular file, found {found}"),
            ));
        }
        let file = std::fs::File::open(path).map_err(io)?;
        let n_bytes = file.metadata().map_err(io)?.len();
        if n_bytes == 0 {
            return Err(Error::format(path, "expected weights, found an empty file"));
        }
        let mapped = match load {
            // SAFETY: the mapping is private and read-only, and this value unmaps it when dropped: nothing here changes
            // the bytes. The documentation above asks the user that nobody else changes the file.
            Load::Map => unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) }.ok(),
            Load::Read => None,
        };
        let content = match mapped {
            Some(map) => Content::Mapped(map),
            None => Content::Read(read_whole(file, n_bytes).map_err(io)?),
        };
        Ok(MappedFile {
            content,
            path: path.to_path_buf(),
        })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map,
            Content::Read(bytes) => bytes,
        }
    }

    /// The mapping; `None` if the file has been read.
    fn map(&self) -> Option<&memmap2::Mmap> {
        match &self.content {
            Content::Mapped(map) => Some(map),
            Content::Read(_) => None,
        }
    }

    /// Where the file was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// All of a file. That memory does not suffice is an error like any other.
fn read_whole(mut file: std::fs::File, n_bytes: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Read};
    let mut bytes = Vec::new();
    let reserved = usize::try_from(n_bytes)
        .ok()
        .map(|n| bytes.try_reserve_exact(n));
    if !matches!(reserved, Some(Ok(()))) {
        let message = format!("cannot allocate {n_bytes} bytes to read it");
        return Err(Error::new(ErrorKind::OutOfMemory, message));
    }
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Who owns the bytes of one or more tensors. Cloning shares them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Storage {
    /// A file, mapped or read.
    Mapped(Arc<MappedFile>),
    /// Memory of our own.
    Owned(Arc<[u8]>),
    /// Bytes that are part of the program.
    Static(&'static [u8]),
}

impl Storage {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(file) => file.bytes(),
            Storage::Owned(bytes) => bytes,
            Storage::Static(bytes) => bytes,
        }
    }

    /// See [`Tensor::release`].
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = self.map() {
            // SAFETY: the mapping is read-only, so that no page of it differs from the file, from which pages that
            // are dropped come back with the same content: no reference into it sees a change.
            let _ = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// The mapping that the bytes are in, if they are in one.
    fn map(&self) -> Option<&memmap2::Mmap> {
        match self {
            Storage::Mapped(file) => file.map(),
            _ => None,
        }
    }
}

impl From<MappedFile> for Storage {
    fn from(file: MappedFile) -> Self {
        Storage::Mapped(Arc::new(file))
    }
}

impl From<Arc<MappedFile>> for Storage {
    fn from(file: Arc<MappedFile>) -> Self {
        Storage::Mapped(file)
    }
}

impl From<Arc<[u8]>> for Storage {
    fn from(bytes: Arc<[u8]>) -> Self {
        Storage::Owned(bytes)
    }
}

impl From<Vec<u8>> for Storage {
    fn from(bytes: Vec<u8>) -> Self {
        Storage::Owned(bytes.into())
    }
}

impl From<&'static [u8]> for Storage {
    fn from(bytes: &'static [u8]) -> Self {
        Storage::Static(bytes)
    }
}

/// An immutable tensor, row-major, the last axis contiguous. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
    range: Range<usize>, // of storage.bytes(); its length is dtype.size_of(shape)
}

/// The smallest page of the systems we run on.
const PAGE: usize = 4096;

impl Tensor {
    /// A view of `storage`, `offset` bytes into it.
    ///
    /// # Errors
    /// [`Error::Argument`] if the tensor's size overflows or the storage ends before the tensor.
    pub fn view(
        dtype: DType,
        shape: Vec<usize>,
        storage: Storage,
        offset: usize,
    ) -> Result<Tensor> {
        let n_bytes = dtype.size_of(&shape).ok_or_else(|| {
            Error::argument(
                "shape",
                format!("a {dtype} tensor of shape {shape:?} is too large or of a wrong rank"),
            )
        })?;
        let end = offset
            .checked_add(n_bytes)
            .filter(|&end| end <= storage.bytes().len());
        let Some(end) = end else {
            return Err(Error::argument(
                "storage",
                format!(
                    "expected {n_bytes} bytes at {offset} for {dtype} {shape:?}, found {} in all",
                    storage.bytes().len()
                ),
            ));
        };
        Ok(Tensor {
            dtype,
            shape,
            storage,
            range: offset..end,
        })
    }

    /// A tensor that owns `bytes`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are more or fewer bytes than the shape needs.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Tensor> {
        let found = bytes.len();
        if dtype.size_of(&shape) != Some(found) {
            return Err(Error::argument(
                "bytes",
                format!("expected the bytes of a {dtype} tensor {shape:?}, found {found}"),
            ));
        }
        Tensor::view(dtype, shape, bytes.into(), 0)
    }

    /// An f32 tensor in memory.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are more or fewer values than the shape has elements.
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Result<Tensor> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::from_bytes(DType::F32, shape, bytes)
    }

    /// How the elements are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each axis; matrices are (rows, cols).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements as stored: little-endian, rows one after the other, at any alignment.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        // No overflow: `size_of` multiplied the same numbers, each element at least half a byte
        // in any format we read, and a tensor without bytes has an axis of length 0.
        if self.shape.contains(&0) {
            return 0;
        }
        self.shape.iter().product()
    }

    /// Number of rows: the product of all axes but the last; 1 for a vector.
    pub fn rows(&self) -> usize {
        let rows = &self.shape[..self.shape.len().saturating_sub(1)];
        if rows.contains(&0) {
            return 0;
        }
        rows.iter().product()
    }

    /// Elements of a row: the length of the last axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.dtype
            .size_of_row(self.cols())
            .expect("checked when the tensor was made")
    }

    /// Rows `range` of a matrix; shares the bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] if this is no matrix or has not that many rows.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Tensor> {
        let &[rows, cols] = &self.shape[..] else {
            return Err(Error::argument(
                "tensor",
                format!("expected a matrix to take rows of, found {:?}", self.shape),
            ));
        };
        if range.start > range.end || range.end > rows {
            return Err(Error::argument(
                "range",
                format!("expected rows within 0..{rows}, found {range:?}"),
            ));
        }
        let multiple = self.dtype.row_multiple(cols);
        if !range.start.is_multiple_of(multiple)
            || !(range.end.is_multiple_of(multiple) || range.end == rows)
        {
            return Err(Error::argument(
                "range",
                format!("expected multiples of {multiple} rows, found {range:?}"),
            ));
        }
        let start = self.range.start + range.start * self.row_bytes();
        Tensor::view(
            self.dtype,
            vec![range.len(), cols],
            self.storage.clone(),
            start,
        )
    }

    /// Elements that programs convert at a time: 4 MB in f32.
    pub const PIECE: usize = 1 << 20;

    /// The tensor as a matrix in pieces of whole rows, in order, each with the number of its first row. A piece
    /// has about `n_elements` elements, and at least the rows that are stored together.
    pub fn row_pieces(&self, n_elements: usize) -> impl Iterator<Item = (usize, Tensor)> {
        let (n_rows, cols) = (self.rows(), self.cols());
        let matrix = (self.reshape(vec![n_rows, cols])).expect("as many elements");
        let step = (n_elements / cols.max(1)).max(1);
        let step = step.next_multiple_of(self.dtype.row_multiple(cols));
        (0..n_rows).step_by(step).map(move |first| {
            let rows = first..(first + step).min(n_rows);
            (first, matrix.slice_rows(rows).expect("rows of the tensor"))
        })
    }

    /// The bytes seen as another shape with the same number of elements.
    ///
    /// # Errors
    /// [`Error::Argument`] if the new shape needs more or fewer bytes.
    pub fn reshape(&self, shape: Vec<usize>) -> Result<Tensor> {
        let same_cols = shape.last() == self.shape.last() || self.dtype.is_plain();
        if self.dtype.size_of(&shape) != Some(self.range.len()) || !same_cols {
            return Err(Error::argument(
                "shape",
                format!(
                    "expected the number of elements of {:?}, found {shape:?}",
                    self.shape
                ),
            ));
        }
        Tensor::view(self.dtype, shape, self.storage.clone(), self.range.start)
    }

    /// Advises the system that these bytes will not be read again soon, so that a program that walks
    /// through a large file does not fill the memory with it. Does nothing for bytes in memory and
    /// where there is no `madvise`; what is read later is fetched from the file again.
    pub fn release(&self) {
        self.storage.release(self.range.clone());
    }

    /// Advises the system that rows will be read at random, so that it does not read ahead: a
    /// hint for large tables. Does nothing for bytes in memory and where there is no `madvise`.
    pub fn advise_random(&self) {
        #[cfg(unix)]
        if let Some(map) = self.storage.map() {
            // A hint that is refused changes nothing but speed.
            let (first, n) = (self.range.start, self.range.len());
            let _ = map.advise_range(memmap2::Advice::Random, first, n);
        }
    }

    /// Asks the system to start reading a row, without waiting: a hint. A row out of range is passed
    /// over. Does nothing for bytes in memory and where there is no `madvise`.
    pub fn prefetch_row(&self, row: usize) {
        #[cfg(unix)]
        if let (Some(map), Some(pages)) = (self.storage.map(), self.pages(row)) {
            let (first, n) = (pages.start, pages.len());
            let _ = map.advise_range(memmap2::Advice::WillNeed, first, n);
        }
        #[cfg(not(unix))]
        let _ = row;
    }

    /// Waits until the pages of a row are in memory and mapped. A row out of range is passed over. Does
    /// nothing for bytes in memory.
    pub fn touch_row(&self, row: usize) {
        if let (Some(_), Some(pages)) = (self.storage.map(), self.pages(row)) {
            for page in pages.step_by(PAGE) {
                std::hint::black_box(self.storage.bytes()[page]);
            }
        }
    }

    /// The bytes of the tensor among which those of row `row` are.
    fn row_range(&self, row: usize) -> Range<usize> {
        const TILE: usize = BlockFormat::TILE_ROWS;
        let row_bytes = self.row_bytes();
        match self.dtype {
            DType::F32 | DType::F16 | DType::Bf16 | DType::Bf12 => {
                row * row_bytes..(row + 1) * row_bytes
            }
            DType::Tiles(_) => {
                let tile = row / TILE * TILE;
                tile * row_bytes..(tile + TILE) * row_bytes
            }
            DType::Table(format) => {
                let pieces = self.cols().div_ceil(format.chunk_cols());
                let tile = row_bytes / pieces * TILE;
                row * pieces / TILE * tile..((row + 1) * pieces).div_ceil(TILE) * tile
            }
        }
    }

    /// The bytes of row `row` in the storage, rounded out to pages; `None` if there is no such row.
    fn pages(&self, row: usize) -> Option<Range<usize>> {
        if row >= self.rows() || self.range.is_empty() {
            return None;
        }
        let bytes = self.row_range(row);
        let start = (self.range.start + bytes.start) / PAGE * PAGE;
        let end = (self.range.start + bytes.end).next_multiple_of(PAGE);
        Some(start..end.min(self.storage.bytes().len()))
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("blt-tensor-{}-{name}", std::process::id()))
    }

    #[test]
    fn rows_are_views_and_bounds_are_checked() {
        let t = Tensor::from_f32(vec![4, 3], (0..12).map(|i| i as f32).collect()).unwrap();
        let middle = t.slice_rows(1..3).unwrap();
        assert_eq!(middle.to_f32_vec(), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(middle.bytes().as_ptr(), t.bytes()[12..].as_ptr());
        assert_eq!(
            middle.slice_rows(1..2).unwrap().to_f32_vec(),
            [6.0, 7.0, 8.0]
        );
        assert_eq!(t.slice_rows(4..4).unwrap().n_elements(), 0);
        assert!(t.slice_rows(2..5).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 3..1;
        assert!(t.slice_rows(backwards).is_err());
        assert!(
            Tensor::from_f32(vec![3], vec![0.0; 3])
                .unwrap()
                .slice_rows(0..1)
                .is_err()
        );
        assert_eq!(t.reshape(vec![12]).unwrap().to_f32_vec(), t.to_f32_vec());
        assert!(t.reshape(vec![13]).is_err());
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(Tensor::from_f32(vec![2, 2], vec![0.0; 3]).is_err());
        assert!(Tensor::from_bytes(DType::F32, vec![1], vec![0; 5]).is_err());
        for shape in [
            vec![usize::MAX],
            vec![usize::MAX, usize::MAX],
            vec![1 << 62, 8],
        ] {
            assert_eq!(DType::F32.size_of(&shape), None, "{shape:?}");
            assert!(Tensor::view(DType::F32, shape, vec![0; 64].into(), 0).is_err());
        }
        let storage = Storage::from(vec![0; 64]);
        assert!(Tensor::view(DType::F32, vec![8], storage.clone(), 32).is_ok());
        assert!(Tensor::view(DType::F32, vec![8], storage.clone(), 33).is_err());
        assert!(Tensor::view(DType::F32, vec![8], storage, usize::MAX).is_err());
    }

    #[test]
    fn a_mapped_file_serves_bytes_at_any_alignment() {
        let path = temp("map");
        std::fs::write(&path, (0..=255).cycle().take(20_000).collect::<Vec<u8>>()).unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        let t = Tensor::view(DType::F32, vec![40, 100], file.into(), 3).unwrap();
        assert_eq!(t.bytes()[..4], [3, 4, 5, 6]);
        assert_eq!(t.to_f32_vec()[0], f32::from_le_bytes([3, 4, 5, 6]));
        t.advise_random();
        for row in [0, 39, 40, usize::MAX] {
            t.prefetch_row(row);
            t.touch_row(row);
        }
        assert_eq!(t.slice_rows(0..40).unwrap().bytes(), t.bytes());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_pages_of_rows() {
        // Rows of 1000 bytes, 96 bytes into the storage.
        let t = Tensor::view(DType::F32, vec![20, 250], vec![0; 20_100].into(), 96).unwrap();
        assert_eq!(t.pages(0), Some(0..4096));
        assert_eq!(t.pages(4), Some(4096..8192));
        assert_eq!(t.pages(8), Some(4096..12288));
        assert_eq!(t.pages(19), Some(16384..20100));
        assert_eq!(t.pages(20), None);
    }

    #[test]
    fn files_that_cannot_be_mapped_are_clear_errors() {
        let empty = temp("empty");
        std::fs::write(&empty, b"").unwrap();
        let cases = [
            (empty.clone(), "empty file"),
            (std::env::temp_dir(), "found a folder"),
            (temp("missing"), "No such file"),
        ];
        for (path, expected) in cases {
            let message = MappedFile::open(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        std::fs::remove_file(empty).unwrap();
    }

    #[test]
    fn a_file_that_is_read_serves_the_same_bytes_and_keeps_them() {
        let path = temp("read");
        std::fs::write(&path, [7; 100]).unwrap();
        let (mapped, read) = (MappedFile::open(&path), MappedFile::load(&path, Load::Read));
        let (mapped, read) = (mapped.unwrap(), Arc::new(read.unwrap()));
        assert!(mapped.map().is_some() && read.map().is_none());
        assert_eq!(mapped.bytes(), read.bytes());
        std::fs::write(&path, [8; 100]).unwrap();
        assert_eq!(read.bytes(), [7; 100]);
        let t = Tensor::view(DType::F32, vec![5, 5], read.into(), 0).unwrap();
        t.advise_random();
        t.prefetch_row(1);
        t.touch_row(1);
        t.release();
        assert_eq!(t.bytes(), [7; 100]);
        std::fs::remove_file(path).unwrap();
        assert!(
            "mmap"
                .parse::<Load>()
                .unwrap_err()
                .to_string()
                .contains("map or read")
        );
    }

    /// Files of sysfs can be read and not mapped.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_cannot_be_mapped_is_read() {
        let path = Path::new("/sys/kernel/uevent_seqnum");
        let expected = std::fs::read(path).unwrap();
        let file = MappedFile::open(path).unwrap();
        assert!(file.map().is_none());
        assert_eq!(file.bytes(), expected);
    }

    #[test]
    fn tensors_cross_threads() {
        fn assert_send_sync<T: Send + Sync>() {}
        assert_send_sync::<Tensor>();
    }
}
