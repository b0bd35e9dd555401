//! What the configuration of a native file holds of a Bolmo model: everything, the subwords included.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::checkpoint::json::Object;
use crate::config::{BolmoConfig, LayerVariant, QkNorm, RopeScaling, Subwords};
use crate::error::{Error, Result};
use crate::subwords::SubwordTable;
use crate::vocab::Id;

pub fn to_json(c: &BolmoConfig) -> Value {
    json!({
        "join_norm_eps": c.join_norm_eps,
        "stop_ids": c.stop_ids,
        "tokenizer": c.tokenizer,
        "subwords": c.subwords.as_ref().map(|subwords| json!({
            "n_rows": subwords.n_rows,
            "table": subwords.table.to_text(),
        })),
    })
}

pub fn from_json(o: &Object) -> Result<BolmoConfig> {
    o.check_keys(&["join_norm_eps", "stop_ids", "tokenizer", "subwords"])?;
    let stop_ids = o.required("stop_ids", "a list of ids", o.sizes("stop_ids")?)?;
    Ok(BolmoConfig {
        join_norm_eps: o.required_number("join_norm_eps")?,
        // More than an id holds is refused as more than there are.
        stop_ids: stop_ids
            .into_iter()
            .map(|id| Id::try_from(id).unwrap_or(Id::MAX))
            .collect(),
        tokenizer: o
            .required("tokenizer", "a string", o.text("tokenizer")?)?
            .to_string(),
        subwords: o
            .object("subwords")?
            .map(|o| subwords_from_json(&o))
            .transpose()?,
    })
}

fn subwords_from_json(o: &Object) -> Result<Subwords> {
    o.check_keys(&["n_rows", "table"])?;
    let text = o.required("table", "a string", o.text("table")?)?;
    let table =
        SubwordTable::from_text(text).map_err(|what| Error::config(o.key("table"), what))?;
    Ok(Subwords {
        n_rows: o.required_size("n_rows")?,
        table: Arc::new(table),
    })
}

pub fn variant_to_json(c: &LayerVariant) -> Value {
    json!({
        "norm_after": c.norm_after,
        "qk_norm": c.qk_norm.map(|norm| match norm {
            QkNorm::Row => "row",
            QkNorm::Head => "head",
        }),
        "attention_bias": c.attention_bias,
        "windows": c.windows,
        "rope_scaling": match c.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => json!({
                "type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_positions": original_positions,
            }),
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, attention_factor, truncate } => json!({
                "type": "yarn",
                "factor": factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "original_positions": original_positions,
                "attention_factor": attention_factor,
                "truncate": truncate,
            }),
        },
    })
}

pub fn variant_from_json(o: &Object) -> Result<LayerVariant> {
    o.check_keys(&[
        "norm_after",
        "qk_norm",
        "attention_bias",
        "windows",
        "rope_scaling",
    ])?;
    let qk_norm = match o.text("qk_norm")? {
        None => None,
        Some("row") => Some(QkNorm::Row),
        Some("head") => Some(QkNorm::Head),
        Some(other) => {
            return Err(Error::config(
                o.key("qk_norm"),
                format!("expected row, head or null, found {other:?}"),
            ));
        }
    };
    let windows = o.required(
        "windows",
        "a list",
        o.value("windows").and_then(Value::as_array),
    )?;
    let window = |value: &Value| match value {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(Error::config(
                o.key("windows"),
                format!("expected whole numbers or null, found {value}"),
            )),
        },
    };
    Ok(LayerVariant {
        norm_after: o.required_flag("norm_after")?,
        qk_norm,
        attention_bias: o.required_flag("attention_bias")?,
        windows: windows.iter().map(window).collect::<Result<_>>()?,
        rope_scaling: match o.object("rope_scaling")? {
            None => RopeScaling::None,
            Some(o) => rope_scaling_from_json(&o)?,
        },
    })
}

fn rope_scaling_from_json(o: &Object) -> Result<RopeScaling> {
    match o.required("type", "a string", o.text("type")?)? {
        "linear" => {
            o.check_keys(&["type", "factor"])?;
            Ok(RopeScaling::Linear {
                factor: o.required_number("factor")?,
            })
        }
        "llama3" => {
            o.check_keys(&[
                "type",
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_positions",
            ])?;
            Ok(RopeScaling::Llama3 {
                factor: o.required_number("factor")?,
                low_freq_factor: o.required_number("low_freq_factor")?,
                high_freq_factor: o.required_number("high_freq_factor")?,
                original_positions: o.required_number("original_positions")?,
            })
        }
        "yarn" => {
            o.check_keys(&[
                "type",
                "factor",
                "beta_fast",
                "beta_slow",
                "original_positions",
                "attention_factor",
                "truncate",
            ])?;
            Ok(RopeScaling::Yarn {
                factor: o.required_number("factor")?,
                beta_fast: o.required_number("beta_fast")?,
                beta_slow: o.required_number("beta_slow")?,
                original_positions: o.required_number("original_positions")?,
                attention_factor: o.required_number("attention_factor")?,
                truncate: o.required_flag("truncate")?,
            })
        }
        other => Err(Error::config(
            o.key("type"),
            format!("expected linear, llama3 or yarn, found {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subwords::Subword;

    #[test]
    fn all_variants_come_back_equal() {
        let root = |value: &Value| {
            let text = value.to_string();
            serde_json::from_str::<Value>(&text).unwrap()
        };
        for rope_scaling in [
            RopeScaling::None,
            RopeScaling::Linear { factor: 2.5 },
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_positions: 8192.0,
            },
            RopeScaling::Yarn {
                factor: 8.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_positions: 8192.0,
                attention_factor: 1.207_944,
                truncate: false,
            },
        ] {
            for (qk_norm, windows) in [
                (None, vec![]),
                (Some(QkNorm::Row), vec![Some(6), None]),
                (Some(QkNorm::Head), vec![None]),
            ] {
                let variant = LayerVariant {
                    norm_after: windows.is_empty(),
                    qk_norm,
                    attention_bias: !windows.is_empty(),
                    windows,
                    rope_scaling,
                };
                let value = root(&variant_to_json(&variant));
                assert_eq!(
                    variant_from_json(&Object::root(&value).unwrap()).unwrap(),
                    variant
                );
            }
        }
        let single = (0..=255u8).map(|byte| (Subword::Bytes(vec![byte]), byte.into()));
        let table = SubwordTable::new(single.chain([(Subword::Special(1), 256)])).unwrap();
        for subwords in [
            None,
            Some(Subwords {
                n_rows: 300,
                table: Arc::new(table),
            }),
        ] {
            let config = BolmoConfig {
                join_norm_eps: 0.02,
                subwords,
                stop_ids: vec![1, 14],
                tokenizer: "org/source".into(),
            };
            let value = root(&to_json(&config));
            assert_eq!(from_json(&Object::root(&value).unwrap()).unwrap(), config);
        }
    }
}
