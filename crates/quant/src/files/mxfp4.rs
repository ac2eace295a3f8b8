//! MXFP4 as gpt-oss has it: `P_blocks` U8 `[experts, rows, cols ÷ 32, 16]`, the even element of a pair in
//! the low half, and `P_scales` U8 `[experts, rows, cols ÷ 32]` of E8M0. A byte of scale 255, NaN, is
//! refused (Transformers, `convert_moe_packed_tensors`, makes 2¹²⁸ of it).

use super::error::{Error, Result};
use super::tensors::{Safetensors, Tensor};
use super::writer::NewTensor;
use crate::{MxFp4, Quantized};
use safetensors::Dtype;
use std::borrow::Cow;

/// Bytes of a block of 32.
const BYTES: usize = 16;

/// The matrices of some experts, `[rows, cols]` each.
#[derive(Debug, Clone)]
pub struct Experts<'a> {
    blocks: Tensor<'a>,
    scales: Tensor<'a>,
    experts: usize,
    shape: [usize; 2],
}

/// Finds `prefix_blocks` and `prefix_scales`, where `prefix` is `model.layers.0.mlp.experts.down_proj`
/// for instance.
///
/// # Errors
/// A part that is not there, or of another type or shape.
pub fn read<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<Experts<'a>> {
    let part = |part: &str| file.tensor(&format!("{prefix}_{part}"))?.of(&[Dtype::U8]);
    let blocks = part("blocks")?;
    let [experts, rows, groups, _] = blocks.dims()?;
    let blocks = blocks.shaped(&[experts, rows, groups, BYTES])?;
    let scales = part("scales")?.shaped(&[experts, rows, groups])?;
    let cols = groups.checked_mul(2 * BYTES);
    let cols = cols.ok_or_else(|| blocks.misshapen("a row that memory can hold".into()))?;
    blocks.refuse_empty([rows, cols])?;
    Ok(Experts {
        blocks,
        scales,
        experts,
        shape: [rows, cols],
    })
}

impl<'a> Experts<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.experts
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.experts == 0
    }

    /// `[rows, cols]` of each.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The matrix of an expert, borrowed.
    ///
    /// # Errors
    /// There are fewer; a scale that is NaN.
    pub fn expert(&self, expert: usize) -> Result<Quantized<'a, MxFp4>> {
        if expert >= self.experts {
            let count = self.experts;
            return Err(self
                .blocks
                .content(format!("expert {expert} of {count} was asked for")));
        }
        let part = |bytes: &'a [u8]| {
            let size = bytes.len() / self.experts;
            &bytes[expert * size..][..size]
        };
        let (blocks, scales) = (part(self.blocks.data()), part(self.scales.data()));
        Quantized::from_parts(MxFp4::default(), self.shape, (), blocks, scales)
            .map_err(|error| self.scales.matrix(error))
    }
}

/// The tensors of some experts of one shape, whose columns are a multiple of 32.
///
/// # Errors
/// Matrices of different shapes, none, or rows that are not whole blocks.
pub fn tensors<'a>(
    prefix: &str,
    experts: &'a [Quantized<'_, MxFp4>],
) -> Result<Vec<NewTensor<'a>>> {
    let name = format!("{prefix}_blocks");
    let Some([rows, cols]) = experts.first().map(Quantized::shape) else {
        return Err(Error::unwritable(&name, "no experts"));
    };
    if cols % (2 * BYTES) != 0 {
        let reason = format!("rows of {cols} are not whole blocks of 32");
        return Err(Error::unwritable(&name, reason));
    }
    if let Some(other) = experts.iter().find(|other| other.shape() != [rows, cols]) {
        let (first, other) = ([rows, cols], other.shape());
        let reason = format!("experts of the shapes {first:?} and {other:?}");
        return Err(Error::unwritable(&name, reason));
    }
    let blocks = joined(experts.iter().map(Quantized::codes).collect());
    let scales = joined(experts.iter().map(Quantized::scales).collect());
    let shape = [experts.len(), rows, cols / (2 * BYTES), BYTES];
    Ok(vec![
        NewTensor::bytes(name, Dtype::U8, &shape, blocks),
        NewTensor::bytes(format!("{prefix}_scales"), Dtype::U8, &shape[..3], scales),
    ])
}

/// Slices after one another; one alone is borrowed.
fn joined(parts: Vec<&[u8]>) -> Cow<'_, [u8]> {
    match parts[..] {
        [part] => Cow::Borrowed(part),
        _ => Cow::Owned(parts.concat()),
    }
}
