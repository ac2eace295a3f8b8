//! NVFP4, of a weight `[rows, cols]` whose columns are a multiple of 16, the even element of a pair in
//! the low half of a byte.
//!
//! | | compressed-tensors (`nvfp4-pack-quantized`) | ModelOpt |
//! |---|---|---|
//! | codes, U8 `[rows, cols ÷ 2]` | `P.weight_packed` | `P.weight` |
//! | scales, F8_E4M3 `[rows, cols ÷ 16]` | `P.weight_scale` | `P.weight_scale` |
//! | of the tensor, one F32 | `P.weight_global_scale`: a divisor, `[1]` | `P.weight_scale_2`: a factor, `[]` |
//! | of activations, one F32 | `P.input_global_scale`: a divisor | `P.input_scale`: a factor |
//!
//! compressed-tensors divides scales by the divisor; here they are multiplied with its reciprocal, so
//! values may differ by a unit or two in the last place of an f32. They are the same in bf16 but where
//! that unit decides a rounding.

use super::error::{Error, Result};
use super::tensors::{Safetensors, Tensor};
use super::writer::NewTensor;
use crate::{GlobalScale, NvFp4, Quantized};
use safetensors::Dtype;

/// Who wrote, or is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NvFp4Keys {
    /// compressed-tensors, as LLM Compressor and vLLM have it.
    CompressedTensors,
    /// NVIDIA ModelOpt.
    ModelOpt,
}

impl NvFp4Keys {
    /// Codes, the tensor's scale, and that of activations, without the prefix.
    pub(crate) fn names(self) -> [&'static str; 3] {
        match self {
            Self::CompressedTensors => {
                ["weight_packed", "weight_global_scale", "input_global_scale"]
            }
            Self::ModelOpt => ["weight", "weight_scale_2", "input_scale"],
        }
    }

    fn scale(self, stored: f32) -> GlobalScale {
        match self {
            Self::CompressedTensors => GlobalScale::from_divisor(stored),
            Self::ModelOpt => GlobalScale::from_factor(stored),
        }
    }

    fn stored(self, scale: GlobalScale) -> f32 {
        match self {
            Self::CompressedTensors => scale.divisor(),
            Self::ModelOpt => scale.factor(),
        }
    }
}

/// A weight, and the scale of activations if the file has one.
#[derive(Debug, Clone, PartialEq)]
pub struct NvFp4Layer<'a> {
    /// The weight, borrowed.
    pub matrix: Quantized<'a, NvFp4>,
    /// The scale of activations.
    pub input: Option<GlobalScale>,
}

/// Reads the layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape; a scale that is not finite, or a tensor's that
/// is not positive.
pub fn read<'a>(file: &Safetensors<'a>, prefix: &str, keys: NvFp4Keys) -> Result<NvFp4Layer<'a>> {
    let part = |name: &str| format!("{prefix}.{name}");
    let [codes, global, input] = keys.names();
    let weight = file.tensor(&part(codes))?.of(&[Dtype::U8])?;
    let [rows, half] = weight.dims()?;
    weight.refuse_empty([rows, half])?;
    if half % 8 != 0 {
        return Err(weight.misshapen("rows of whole blocks of 16, 8 bytes each".into()));
    }
    // Twice a length in memory does not overflow.
    let cols = 2 * half;
    let scales = file.tensor(&part("weight_scale"))?;
    let scales = scales.of(&[Dtype::F8_E4M3])?.shaped(&[rows, half / 8])?;
    let global = global_scale(file.tensor(&part(global))?, keys)?;
    let input = file.get(&part(input));
    let input = input.map(|input| global_scale(input, keys)).transpose()?;
    let (codes, bytes) = (weight.data(), scales.data());
    let matrix = Quantized::from_parts(NvFp4, [rows, cols], global, codes, bytes)
        .map_err(|error| scales.matrix(error))?;
    Ok(NvFp4Layer { matrix, input })
}

fn global_scale(tensor: Tensor, keys: NvFp4Keys) -> Result<GlobalScale> {
    let stored = tensor.clone().scalar()?;
    let scale = keys.scale(stored);
    if stored > 0.0 && stored.is_finite() && scale.factor().is_finite() && scale.factor() > 0.0 {
        return Ok(scale);
    }
    Err(tensor.content(format!("{stored} is not a positive scale")))
}

/// The tensors of a layer `prefix`.
///
/// # Errors
/// Rows that are not whole blocks of 16.
pub fn tensors<'a>(
    prefix: &str,
    layer: &'a NvFp4Layer<'_>,
    keys: NvFp4Keys,
) -> Result<Vec<NewTensor<'a>>> {
    let part = |name: &str| format!("{prefix}.{name}");
    let [codes, global, input] = keys.names();
    let matrix = &layer.matrix;
    let [rows, cols] = matrix.shape();
    if cols % 16 != 0 {
        let reason = format!("rows of {cols} are not whole blocks of 16");
        return Err(Error::unwritable(&part(codes), reason));
    }
    let one = |name: &str, scale: GlobalScale| {
        let stored = keys.stored(scale).to_le_bytes().to_vec();
        let shape: &[usize] = match keys {
            NvFp4Keys::CompressedTensors => &[1],
            NvFp4Keys::ModelOpt => &[],
        };
        NewTensor::bytes(part(name), Dtype::F32, shape, stored)
    };
    let mut tensors = vec![
        NewTensor::bytes(part(codes), Dtype::U8, &[rows, cols / 2], matrix.codes()),
        NewTensor::bytes(
            part("weight_scale"),
            Dtype::F8_E4M3,
            &[rows, cols / 16],
            matrix.scales(),
        ),
        one(global, matrix.tensor()),
    ];
    tensors.extend(layer.input.map(|scale| one(input, scale)));
    Ok(tensors)
}
