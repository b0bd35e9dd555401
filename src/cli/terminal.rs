//! What a stream can show.

use std::io::IsTerminal;

/// Begins dim text.
pub const DIM: &str = "\x1b[2m";
/// Ends it.
pub const PLAIN: &str = "\x1b[0m";

/// Whether standard output and standard error lead to the same place, such as one pipe.
#[cfg(unix)]
pub fn is_one_stream() -> bool {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::fs::MetadataExt;
    let place = |fd: BorrowedFd<'_>| {
        let file = std::fs::File::from(fd.try_clone_to_owned().ok()?);
        let found = file.metadata().ok()?;
        Some((found.dev(), found.ino()))
    };
    let (out, err) = (
        place(std::io::stdout().as_fd()),
        place(std::io::stderr().as_fd()),
    );
    out.is_some() && out == err
}

/// Whether standard output and standard error lead to the same place: not known here.
#[cfg(not(unix))]
pub fn is_one_stream() -> bool {
    false
}

/// Whether colours may be written to `stream`: it is a terminal, and neither `NO_COLOR`
/// (no-color.org) nor a dumb terminal says otherwise.
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    stream.is_terminal() && !is_set("NO_COLOR") && !dumb
}

/// A character as a terminal should see it: control characters, with which a model's text could
/// take over the terminal, become their pictures. Line feeds and tabs stay.
pub fn harmless(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => {
            char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}
