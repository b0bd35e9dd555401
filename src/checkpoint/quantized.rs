//! How native files (version 2) say what their quantised or packed tensors are.
//!
//! Such a tensor is stored as bytes: safetensors type `U8`, shape `[number of bytes]`.
//! `__metadata__` says what they mean:
//!
//! - `blt.block_layout`: the version of the byte layout of blocks (`1`), which
//!   `blt_kernels::BlockFormat` defines with its alignment and padding;
//! - `blt.tensors`: a JSON object, our name of each such tensor to
//!   `{"format": "q4_k", "arrangement": "tiles", "shape": [rows, cols]}`. The arrangement is `tiles`
//!   ([`DType::Tiles`]) for matrices that are multiplied and `table` ([`DType::Table`]) for those
//!   whose rows are looked up; of the format `bf12` ([`DType::Bf12`]) it is `rows`.
//!
//! The number of bytes must be exactly what format, arrangement and shape take, padding included:
//! rows to a multiple of 16 (of a table: its pieces), columns to a multiple of 64, or 256 for formats
//! with super-blocks, each row of `bf12` to what `blt_kernels::Bf12` says. It is a multiple of 64, so
//! that every such tensor begins at a multiple of 64 in the file, as the data do. Nothing else may be listed, and
//! bytes that are not listed are not a tensor. Foreign layouts have no such metadata, so they hold plain tensors only.

use std::collections::HashMap;

use blt_kernels::BlockFormat;
use serde_json::{Map, Value, json};

use super::json::{self, Object};
use super::safetensors::{Skipped, check_names};
use super::spec::{Declared, NativeTensor};
use crate::tensor::DType;

/// Metadata key of the version of the byte layout.
pub const BLOCK_LAYOUT_KEY: &str = "blt.block_layout";
/// The version of the byte layout that the kernels read.
pub const BLOCK_LAYOUT: u32 = BlockFormat::LAYOUT_VERSION;
/// Metadata key of the list of quantised tensors.
pub const TENSORS_KEY: &str = "blt.tensors";

const TILES: &str = "tiles";
const TABLE: &str = "table";
const ROWS: &str = "rows";

/// The list of those among `tensors` that are not plain.
pub fn to_json(tensors: &[NativeTensor]) -> String {
    let list: Map<String, Value> = (tensors.iter())
        .filter(|(_, dtype, _)| !dtype.is_plain())
        .map(|(name, dtype, shape)| {
            let arrangement = match dtype {
                DType::Tiles(_) => TILES,
                DType::Table(_) => TABLE,
                _ => ROWS,
            };
            let format = dtype.name();
            let entry = json!({"format": format, "arrangement": arrangement, "shape": shape});
            (name.clone(), entry)
        })
        .collect();
    Value::from(list).to_string()
}

/// Reads what [`to_json`] wrote from a file's metadata.
///
/// # Errors
/// What was expected and what was found.
pub fn read(metadata: &HashMap<String, String>) -> Result<Declared, String> {
    let text = |key: &str| {
        (metadata.get(key)).ok_or_else(|| format!("expected {key} in the metadata, found nothing"))
    };
    let layout = text(BLOCK_LAYOUT_KEY)?;
    if *layout != BLOCK_LAYOUT.to_string() {
        return Err(format!(
            "expected {BLOCK_LAYOUT_KEY} {BLOCK_LAYOUT}, found {layout:?}; a newer program wrote \
             this file"
        ));
    }
    let text = text(TENSORS_KEY)?;
    check_names(text.as_bytes(), &mut Skipped).map_err(|e| format!("{TENSORS_KEY}: {e}"))?;
    let value = json::parse(text.as_bytes())
        .map_err(|e| format!("{TENSORS_KEY}: expected JSON, found a fault: {e}"))?;
    entries(&value).map_err(|e| format!("{TENSORS_KEY}: {e}"))
}

fn entries(value: &Value) -> crate::error::Result<Declared> {
    let root = Object::root(value)?;
    let mut declared = Declared::new();
    for name in root.keys() {
        let entry = root.required_object(name)?;
        entry.check_keys(&["format", "arrangement", "shape"])?;
        let (format, arrangement) = (entry.text("format")?, entry.text("arrangement")?);
        let dtype = match format {
            Some("bf12") => {
                let dtype = (arrangement == Some(ROWS)).then_some(DType::Bf12);
                entry.required("arrangement", "\"rows\"", dtype)?
            }
            _ => {
                let format = format.and_then(BlockFormat::by_name);
                let format = entry.required("format", "the name of a format", format)?;
                let dtype = match arrangement {
                    Some(TILES) => Some(DType::Tiles(format)),
                    Some(TABLE) => Some(DType::Table(format)),
                    _ => None,
                };
                entry.required("arrangement", "\"tiles\" or \"table\"", dtype)?
            }
        };
        let shape = entry.required("shape", "a list of whole numbers", entry.sizes("shape")?)?;
        declared.insert(name.to_string(), (dtype, shape));
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(layout: &str, tensors: &str) -> HashMap<String, String> {
        HashMap::from([
            (BLOCK_LAYOUT_KEY.into(), layout.into()),
            (TENSORS_KEY.into(), tensors.into()),
        ])
    }

    #[test]
    fn what_is_written_is_read_back_and_floats_are_left_out() {
        let mut tensors: Vec<NativeTensor> = (BlockFormat::ALL.iter())
            .map(|&f| (f.name().to_string(), DType::Tiles(f), vec![3, 64]))
            .collect();
        tensors.push(("t".into(), DType::Table(BlockFormat::ALL[0]), vec![7, 8]));
        tensors.push(("r".into(), DType::Bf12, vec![7, 8]));
        let text = to_json(&[&tensors[..], &[("f".into(), DType::F32, vec![2])]].concat());
        let found = read(&metadata("1", &text)).unwrap();
        assert_eq!(found.len(), tensors.len());
        for (name, dtype, shape) in tensors {
            assert_eq!(found[&name], (dtype, shape), "{name}");
        }
    }

    #[test]
    fn strange_lists_are_refused_by_name() {
        let good = r#"{"format": "q8_0", "arrangement": "tiles", "shape": [1, 2]}"#;
        let one = |entry: &str| format!("{{\"a\": {entry}}}");
        for (text, expected) in [
            (one(&good.replace("q8_0", "q9_9")), "a.format"),
            (one(&good.replace("tiles", "piles")), "a.arrangement"),
            (one(&good.replace("q8_0", "bf12")), "a.arrangement"),
            (one(&good.replace("tiles", "rows")), "a.arrangement"),
            (one(&good.replace("[1, 2]", "[-1, 2]")), "a.shape"),
            (one(&good.replace("[1, 2]", "2")), "a.shape"),
            (one(&good.replace("\"shape\"", "\"form\"")), "a.shape"),
            (one(&good.replace("}", ", \"more\": 1}")), "a.more"),
            (one("3"), "\"a\""),
            (format!("{{\"a\": {good}, \"a\": {good}}}"), "twice"),
            ("[]".into(), "an object"),
            ("{".into(), "EOF"),
        ] {
            let message = read(&metadata("1", &text)).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(message.contains(TENSORS_KEY), "{text}: {message}");
        }
        let message = read(&metadata("2", &one(good))).unwrap_err();
        assert!(message.contains("\"2\"; a newer"), "{message}");
        assert!(
            read(&HashMap::new())
                .unwrap_err()
                .contains(BLOCK_LAYOUT_KEY)
        );
    }
}
