//! Table of contents of a zip archive whose entries are stored, as `torch.save` writes it.
//!
//! Reads the central directory, with its 64-bit form; every offset and length is checked against
//! the archive. Nothing is decompressed and no checksum is computed: entries are ranges of the
//! archive's own bytes. The reader of an entry finds damage inside it.

use std::collections::HashMap;
use std::ops::Range;

/// Most entries an archive may have; a checkpoint has one per tensor.
const MAX_ENTRIES: u64 = 1 << 20;

/// What a 16-bit and a 32-bit field hold when the value is in the 64-bit record.
const IN_ZIP64: u16 = u16::MAX;
const IN_ZIP64_LONG: u32 = u32::MAX;

/// An archive's entries.
#[derive(Debug)]
pub struct Archive {
    entries: HashMap<String, Entry>,
    directory: usize, // where the central directory begins and entries must have ended
}

#[derive(Debug)]
struct Entry {
    flags: u16,
    method: u16,
    compressed: u64,
    size: u64,
    header: u64, // offset of the local header
}

type Fallible<T> = Result<T, String>;

impl Archive {
    /// Whether a file that begins like this may be an archive.
    pub fn sniff(bytes: &[u8]) -> bool {
        bytes.starts_with(b"PK\x03\x04")
    }

    /// Reads the central directory.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn open(bytes: &[u8]) -> Fallible<Archive> {
        let (count, size, offset) = end_record(bytes)?;
        if count > MAX_ENTRIES {
            return Err(format!(
                "expected a zip archive of at most {MAX_ENTRIES} entries, found {count}"
            ));
        }
        let directory = range(bytes, offset, size)
            .ok_or_else(|| format!("zip directory of {size} bytes at {offset} lies outside"))?;
        let mut at = Cursor {
            bytes: &bytes[directory.clone()],
        };
        let mut entries = HashMap::new();
        for number in 0..count {
            let (name, entry) = directory_entry(&mut at)
                .ok_or_else(|| format!("zip directory ends within entry {number} of {count}"))??;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(format!(
                    "expected each zip entry once, found {name:?} twice"
                ));
            }
        }
        Ok(Archive {
            entries,
            directory: directory.start,
        })
    }

    /// The names of the entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where in `bytes`, the archive, the entry's content lies; `None` if there is no such entry.
    ///
    /// # Errors
    /// What was expected and what was found, if the entry is compressed, encrypted or damaged.
    pub fn find(&self, bytes: &[u8], name: &str) -> Fallible<Option<Range<usize>>> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        if entry.method != 0 {
            return Err(format!(
                "expected zip entry {name:?} to be stored, found compression method {}",
                entry.method
            ));
        }
        if entry.flags & 1 != 0 {
            return Err(format!("zip entry {name:?} is encrypted"));
        }
        if entry.compressed != entry.size {
            return Err(format!(
                "expected stored zip entry {name:?} to have one size, found {} and {}",
                entry.compressed, entry.size
            ));
        }
        let damaged = || format!("zip entry {name:?} has a damaged header or lies outside");
        // The directory's start bounds all entries, so no content overlaps the directory.
        let bytes = &bytes[..self.directory];
        let header = range(bytes, entry.header, 30).ok_or_else(damaged)?;
        let start = header.end;
        let mut at = Cursor {
            bytes: &bytes[header],
        };
        let local = (|| {
            at.expect(b"PK\x03\x04")?;
            at.skip(22)?;
            Some((at.u16()?, at.u16()?))
        })();
        let (name_len, extra_len) = local.ok_or_else(damaged)?;
        let local_name = range(bytes, start as u64, name_len.into()).ok_or_else(damaged)?;
        if &bytes[local_name.clone()] != name.as_bytes() {
            return Err(damaged());
        }
        let content = local_name.end as u64 + u64::from(extra_len);
        range(bytes, content, entry.size)
            .map(Some)
            .ok_or_else(damaged)
    }
}

/// Number of entries, size and offset of the central directory.
fn end_record(bytes: &[u8]) -> Fallible<(u64, u64, u64)> {
    const LENGTH: usize = 22;
    let last = bytes
        .len()
        .checked_sub(LENGTH)
        .ok_or_else(|| format!("expected a zip archive, found {} bytes", bytes.len()))?;
    // A comment of up to 64 KiB may follow; it must reach exactly to the end of the file.
    let first = last.saturating_sub(usize::from(u16::MAX));
    let start = (first..=last)
        .rev()
        .find(|&at| {
            bytes[at..].starts_with(b"PK\x05\x06")
                && bytes[at + 20..at + LENGTH] == ((last - at) as u16).to_le_bytes()
        })
        .ok_or("expected the end record of a zip archive, found none; is the file cut short?")?;
    let mut at = Cursor {
        bytes: &bytes[start + 4..start + LENGTH],
    };
    let short = (|| {
        let (disk, directory_disk, here) = (at.u16()?, at.u16()?, at.u16()?);
        let (count, size, offset) = (at.u16()?, at.u32()?, at.u32()?);
        Some((disk, directory_disk, here, count, size, offset))
    })();
    let (disk, directory_disk, here, count, size, offset) = short.ok_or("short end record")?;
    if count == IN_ZIP64 || size == IN_ZIP64_LONG || offset == IN_ZIP64_LONG {
        return end_record_64(bytes, start)
            .ok_or_else(|| "expected the 64-bit end record of a zip archive, found none".into());
    }
    if disk != 0 || directory_disk != 0 || here != count {
        return Err("expected a zip archive in one piece, found part of several".into());
    }
    Ok((count.into(), size.into(), offset.into()))
}

fn end_record_64(bytes: &[u8], end_record: usize) -> Option<(u64, u64, u64)> {
    let locator = end_record.checked_sub(20)?;
    let mut at = Cursor {
        bytes: &bytes[locator..end_record],
    };
    at.expect(b"PK\x06\x07")?;
    at.skip(4)?;
    let record = at.u64()?;
    let mut at = Cursor {
        bytes: &bytes[range(&bytes[..locator], record, 56)?],
    };
    at.expect(b"PK\x06\x06")?;
    at.skip(20)?;
    let (here, count, size, offset) = (at.u64()?, at.u64()?, at.u64()?, at.u64()?);
    (here == count).then_some((count, size, offset))
}

/// The next entry of the directory; `None` if the directory ends first.
fn directory_entry(at: &mut Cursor) -> Option<Fallible<(String, Entry)>> {
    at.expect(b"PK\x01\x02")?;
    at.skip(4)?;
    let (flags, method) = (at.u16()?, at.u16()?);
    at.skip(8)?;
    let (compressed, size) = (at.u32()?, at.u32()?);
    let (name_len, extra_len, comment_len) = (at.u16()?, at.u16()?, at.u16()?);
    at.skip(8)?;
    let header = at.u32()?;
    let name = at.take(name_len.into())?;
    let extra = at.take(extra_len.into())?;
    at.skip(comment_len.into())?;
    let Ok(name) = std::str::from_utf8(name) else {
        return Some(Err("expected zip entry names in UTF-8".into()));
    };
    let mut entry = Entry {
        flags,
        method,
        compressed: compressed.into(),
        size: size.into(),
        header: header.into(),
    };
    // The 64-bit field holds, in this order, only the values that did not fit.
    let mut long = zip64_field(extra);
    for (short, value) in [
        (size, &mut entry.size),
        (compressed, &mut entry.compressed),
        (header, &mut entry.header),
    ] {
        if short == IN_ZIP64_LONG {
            match long.u64() {
                Some(v) => *value = v,
                None => return Some(Err(format!("zip entry {name:?} lacks its 64-bit sizes"))),
            }
        }
    }
    Some(Ok((name.to_string(), entry)))
}

/// The content of the 64-bit extra field, or nothing if the entry lacks one.
fn zip64_field(extra: &[u8]) -> Cursor<'_> {
    let mut at = Cursor { bytes: extra };
    while let (Some(id), Some(len)) = (at.u16(), at.u16()) {
        match at.take(len.into()) {
            Some(bytes) if id == 1 => return Cursor { bytes },
            Some(_) => continue,
            None => break,
        }
    }
    Cursor { bytes: &[] }
}

/// `start..start + length`, if `bytes` has it.
fn range(bytes: &[u8], start: u64, length: u64) -> Option<Range<usize>> {
    let end = start.checked_add(length)?;
    if end > bytes.len() as u64 {
        return None;
    }
    Some(start as usize..end as usize)
}

/// Reads little-endian fields off the front.
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(head)
    }

    fn skip(&mut self, n: usize) -> Option<()> {
        self.take(n).map(|_| ())
    }

    fn expect(&mut self, magic: &[u8; 4]) -> Option<()> {
        (self.take(4)? == magic).then_some(())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Builds archives for tests.
#[cfg(test)]
pub(super) mod testing {
    /// An archive of stored entries; with `long`, every size and offset in its 64-bit form.
    pub fn archive(entries: &[(&str, &[u8])], long: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut directory = Vec::new();
        for (name, content) in entries {
            let offset = out.len() as u64;
            let size = content.len() as u64;
            out.extend(b"PK\x03\x04");
            out.extend([0; 22]);
            out.extend((name.len() as u16).to_le_bytes());
            out.extend(3u16.to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(b"pad");
            out.extend(*content);

            directory.extend(b"PK\x01\x02");
            directory.extend([0; 16]); // versions, flags, method, time, checksum
            let short = |v: u64| if long { u32::MAX } else { v as u32 }.to_le_bytes();
            directory.extend(short(size));
            directory.extend(short(size));
            directory.extend((name.len() as u16).to_le_bytes());
            directory.extend(if long { 28u16 } else { 0 }.to_le_bytes());
            directory.extend([0; 10]);
            directory.extend(short(offset));
            directory.extend(name.as_bytes());
            if long {
                directory.extend(1u16.to_le_bytes());
                directory.extend(24u16.to_le_bytes());
                directory.extend([size, size, offset].map(u64::to_le_bytes).as_flattened());
            }
        }
        let (offset, size) = (out.len() as u64, directory.len() as u64);
        let count = entries.len() as u64;
        out.extend(&directory);
        if long {
            let record = out.len() as u64;
            out.extend(b"PK\x06\x06");
            out.extend([0; 20]);
            out.extend(
                [count, count, size, offset]
                    .map(u64::to_le_bytes)
                    .as_flattened(),
            );
            out.extend(b"PK\x06\x07");
            out.extend([0; 4]);
            out.extend(record.to_le_bytes());
            out.extend([0; 4]);
        }
        let (count, size, offset) = match long {
            true => (u16::MAX, u32::MAX, u32::MAX),
            false => (count as u16, size as u32, offset as u32),
        };
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([count, count].map(u16::to_le_bytes).as_flattened());
        out.extend([size, offset].map(u32::to_le_bytes).as_flattened());
        out.extend([0; 2]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::testing::archive;
    use super::*;

    #[test]
    fn entries_are_ranges_of_the_archive() {
        for long in [false, true] {
            let mut bytes = archive(&[("a", b"first"), ("b/c", b"")], long);
            let zip = Archive::open(&bytes).unwrap();
            let range = zip.find(&bytes, "a").unwrap().unwrap();
            assert_eq!(&bytes[range], b"first", "long: {long}");
            assert!(zip.find(&bytes, "b/c").unwrap().unwrap().is_empty());
            assert_eq!(zip.find(&bytes, "c").unwrap(), None);
            // A comment at the end.
            let n = bytes.len();
            bytes[n - 2] = 4;
            bytes.extend(b"note");
            assert!(Archive::open(&bytes).is_ok(), "long: {long}");
        }
    }

    #[test]
    fn what_is_no_sound_archive_is_refused() {
        let good = archive(&[("a", b"first"), ("b", b"second")], false);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            let zip = Archive::open(&bytes)?;
            zip.find(&bytes, "a").map(|found| found.is_some())
        };
        let end = good.len() - 22;
        let directory = good.len() - 22 - 2 * 47;
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let cases: [(&str, Change, &str); 13] = [
            (
                "compressed",
                &|b| b[directory + 10] = 8,
                "\"a\" to be stored",
            ),
            ("encrypted", &|b| b[directory + 8] = 1, "encrypted"),
            ("two sizes", &|b| b[directory + 20] = 1, "one size"),
            (
                "too long",
                &|b| b[directory + 20..directory + 28].fill(0x7f),
                "lies outside",
            ),
            (
                "64-bit size missing",
                &|b| b[directory + 24..directory + 28].fill(0xff),
                "64-bit",
            ),
            (
                "header elsewhere",
                &|b| b[directory + 42] = 1,
                "damaged header",
            ),
            (
                "header far off",
                &|b| b[directory + 45] = 0x7f,
                "damaged header",
            ),
            ("another name", &|b| b[30] = b'z', "damaged header"),
            (
                "duplicate",
                &|b| b[directory + 47 + 46] = b'a',
                "\"a\" twice",
            ),
            (
                "more entries than there are",
                &|b| {
                    b[end + 8] = 3;
                    b[end + 10] = 3
                },
                "entry 2 of 3",
            ),
            ("directory outside", &|b| b[end + 15] = 0x7f, "lies outside"),
            ("several disks", &|b| b[end + 4] = 1, "one piece"),
            (
                "64-bit record missing",
                &|b| b[end + 8..end + 12].fill(0xff),
                "64-bit",
            ),
        ];
        for (case, change, expected) in cases {
            let message = with(change).expect_err(case);
            assert!(message.contains(expected), "{case}: {message}");
        }
        assert_eq!(with(&|_| {}), Ok(true));
    }

    #[test]
    fn an_archive_cut_short_anywhere_is_refused() {
        for long in [false, true] {
            let bytes = archive(&[("a", b"first"), ("b", b"second")], long);
            for n in 0..bytes.len() {
                assert!(
                    Archive::open(&bytes[..n]).is_err(),
                    "{n} bytes, long: {long}"
                );
            }
        }
    }
}
