//! Matrices packed for this crate's products ([`Packed`]), to be mapped and multiplied as they are.
//!
//! | key | type | |
//! |---|---|---|
//! | `P.packed_codes` | U8 `[n]` | [`Packed::codes`] |
//! | `P.packed_scales` | U8 `[n]` | [`Packed::scales`] |
//! | `P.packed_shifts` | U8 `[n]` | [`Packed::shifts`], where there are |
//! | `P.packed_structure` | U8 | JSON: version (1), rows, cols, group, scales (`f32`, `f16`, `e8m0`, `e4m3`), shifted, factor, levels (`"int8"`, `{"table": {values, steps, unit}}`, `{"bytes": name}` of `mxfp8-e4m3`, `mxfp8-e5m2`, `dynamic8-signed`, `dynamic8-unsigned`) |
//!
//! [`super::SafetensorsWriter`] puts codes on cache lines, which is where products want them.

use super::error::{Error, Result};
use super::tensors::{Safetensors, Tensor};
use super::writer::NewTensor;
use crate::{
    Format, Levels, MxFp8E4m3, MxFp8E5m2, Packed, SIGNED_MAP, ScaleType, Structure, UNSIGNED_MAP,
};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// Of the keys and what they mean. Another layout of the parts is another version.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    rows: usize,
    cols: usize,
    group: usize,
    scales: Scales,
    shifted: bool,
    factor: f32,
    levels: StoredLevels,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scales {
    F32,
    F16,
    E8M0,
    E4M3,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredLevels {
    Int8,
    Table {
        values: [f32; 16],
        steps: [i8; 16],
        unit: f32,
    },
    Bytes(String),
}

/// The tables of 256 values that there are, by name.
fn tables() -> [(&'static str, Levels); 4] {
    [
        ("mxfp8-e4m3", MxFp8E4m3::default().levels()),
        ("mxfp8-e5m2", MxFp8E5m2::default().levels()),
        ("dynamic8-signed", Levels::Bytes(&SIGNED_MAP)),
        ("dynamic8-unsigned", Levels::Bytes(&UNSIGNED_MAP)),
    ]
}

/// Whether a file has a packed matrix of this prefix.
pub fn has(file: &Safetensors, prefix: &str) -> bool {
    file.get(&format!("{prefix}.packed_structure")).is_some()
}

/// Reads the matrix `prefix`, all parts borrowed.
///
/// # Errors
/// A part that is not there, or of another type or length; a structure that is not JSON, of another
/// version, or one that products do not support; a number that is not finite.
pub fn read<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<Packed<'a>> {
    let part = |name: &str| file.tensor(&format!("{prefix}.{name}"))?.of(&[Dtype::U8]);
    let structure = part("packed_structure")?;
    let stored: Stored = serde_json::from_slice(structure.data())
        .map_err(|error| structure.content(format!("not a structure: {error}")))?;
    if stored.version != VERSION {
        let version = stored.version;
        return Err(structure.content(format!("version {version}: this crate reads {VERSION}")));
    }
    let codes = part("packed_codes")?;
    let scales = part("packed_scales")?;
    let shape = [stored.rows, stored.cols];
    // Before anything is computed from the shape: no code is shorter than half a byte.
    let elements = stored.rows.checked_mul(stored.cols);
    if !elements.is_some_and(|n| n > 0 && n.div_ceil(2) <= codes.data().len()) {
        return Err(codes.misshapen(format!("codes of a matrix {shape:?}")));
    }
    let shifts = match stored.shifted {
        true => part("packed_shifts")?.data(),
        false => &[],
    };
    let parsed = parsed(&structure, stored)?;
    Packed::from_parts(shape, parsed, codes.data(), scales.data(), shifts)
        .map_err(|error| structure.matrix(error))
}

fn parsed(tensor: &Tensor, stored: Stored) -> Result<Structure> {
    let refuse = |reason: &str| Err(tensor.content(reason));
    if !stored.factor.is_finite() {
        return refuse("factor is not finite");
    }
    let levels = match stored.levels {
        StoredLevels::Int8 => Levels::Int8,
        StoredLevels::Table {
            values,
            steps,
            unit,
        } => {
            // Products take the steps for the values.
            let near = |(value, step): (&f32, &i8)| {
                (f32::from(*step) * unit - value).abs() <= 0.500_1 * unit && *step != i8::MIN
            };
            if !unit.is_finite() || !values.iter().zip(&steps).all(near) {
                return refuse("steps that are not nearest to the values of the table");
            }
            Levels::Table {
                values,
                steps,
                unit,
            }
        }
        StoredLevels::Bytes(name) => match tables().into_iter().find(|(known, _)| *known == name) {
            Some((_, levels)) => levels,
            None => return refuse("a table of 256 values that there is not"),
        },
    };
    Ok(Structure {
        nibbles: matches!(levels, Levels::Table { .. }),
        levels,
        group: stored.group,
        scales: match stored.scales {
            Scales::F32 => ScaleType::F32,
            Scales::F16 => ScaleType::F16,
            Scales::E8M0 => ScaleType::E8M0,
            Scales::E4M3 => ScaleType::E4M3,
        },
        shifted: stored.shifted,
        factor: stored.factor,
    })
}

/// The tensors of the matrix `prefix`.
///
/// # Errors
/// A factor that is not finite; levels of 256 values that are none of this crate's tables.
pub fn tensors<'a>(prefix: &str, matrix: &'a Packed<'_>) -> Result<Vec<NewTensor<'a>>> {
    let key = |name: &str| format!("{prefix}.{name}");
    let structure = matrix.structure();
    let [rows, cols] = matrix.shape();
    let name = key("packed_structure");
    let stored = Stored {
        version: VERSION,
        rows,
        cols,
        group: structure.group,
        scales: match structure.scales {
            ScaleType::F32 => Scales::F32,
            ScaleType::F16 => Scales::F16,
            ScaleType::E8M0 => Scales::E8M0,
            ScaleType::E4M3 => Scales::E4M3,
        },
        shifted: structure.shifted,
        factor: structure.factor,
        levels: match &structure.levels {
            Levels::Int8 => StoredLevels::Int8,
            Levels::Table {
                values,
                steps,
                unit,
            } => StoredLevels::Table {
                values: *values,
                steps: *steps,
                unit: *unit,
            },
            other => match tables().into_iter().find(|(_, levels)| levels == other) {
                Some((known, _)) => StoredLevels::Bytes(known.to_owned()),
                None => {
                    return Err(Error::unwritable(
                        &name,
                        "a table of 256 values without a name",
                    ));
                }
            },
        },
    };
    // JSON has no infinities and no NaN, and writes null for them.
    if !structure.factor.is_finite() {
        return Err(Error::unwritable(&name, "factor is not finite"));
    }
    let text = serde_json::to_vec(&stored);
    let text = text.map_err(|error| Error::unwritable(&name, error.to_string()))?;
    let part =
        |name: String, bytes: &'a [u8]| NewTensor::bytes(name, Dtype::U8, &[bytes.len()], bytes);
    let mut tensors = vec![
        part(key("packed_codes"), matrix.codes()),
        part(key("packed_scales"), matrix.scales()),
        NewTensor::bytes(name, Dtype::U8, &[text.len()], text),
    ];
    if structure.shifted {
        tensors.push(part(key("packed_shifts"), matrix.shifts()));
    }
    Ok(tensors)
}
