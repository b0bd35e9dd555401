//! One line per byte, as CSV.
//!
//! Columns: `position` in the input, from 0; `byte`, 0 to 255, or the name of a special id;
//! `entropy`, in nats, of the entropy model's guess at this byte (what decides whether it starts a
//! patch), empty without an entropy model; `surprisal`, in bits, of this byte in the model's guess,
//! empty for an id with nothing before it; `patch_start`, 1 or 0.

use std::io::Write;
use std::path::Path;

use blt::output_file::OutputFile;
use blt::vocab::id_to_byte;
use blt::{Error, Result};

use super::scorer::ScoredId;
use blt::cli::output;

/// Names of the special ids.
pub const SPECIAL: [&str; 4] = ["boe", "bos", "eos", "bpe"];

/// Writes a CSV file.
pub struct CsvWriter {
    out: OutputFile,
    position: u64,
    error: Option<std::io::Error>,
}

impl CsvWriter {
    /// Begins the file.
    pub fn create(path: &Path) -> Result<Self> {
        let mut out = output::create(path)?;
        out.put(b"position,byte,entropy,surprisal,patch_start\n")?;
        Ok(CsvWriter {
            out,
            position: 0,
            error: None,
        })
    }

    /// Adds a line. An error is reported by [`CsvWriter::check`].
    pub fn add(&mut self, scored: ScoredId) {
        if self.error.is_none() {
            self.error = self.write(scored).err();
        }
        self.position += 1;
    }

    fn write(&mut self, scored: ScoredId) -> std::io::Result<()> {
        write!(self.out, "{},", self.position)?;
        match id_to_byte(scored.id) {
            Some(byte) => write!(self.out, "{byte},")?,
            None => write!(self.out, "{},", SPECIAL[usize::from(scored.id)])?,
        }
        if scored.entropy.is_finite() {
            write!(self.out, "{:.6}", scored.entropy)?;
        }
        match scored.bits {
            Some(bits) => write!(self.out, ",{bits:.6}")?,
            None => write!(self.out, ",")?,
        }
        writeln!(self.out, ",{}", u8::from(scored.starts_patch))
    }

    /// Whether all lines so far could be written.
    pub fn check(&mut self) -> Result<()> {
        match self.error.take() {
            Some(e) => Err(Error::io(self.out.path(), e)),
            None => Ok(()),
        }
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<()> {
        self.check()?;
        self.out.finish()
    }
}
