//! LLM.int8 layers.

use crate::files::error::Result;
use crate::files::tensors::Safetensors;
use crate::files::writer::NewTensor;
use crate::{LlmInt8, Quantized};
use safetensors::Dtype;

/// Reads the LLM.int8 layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape; a weight_format other than that of rows; SCB
/// that is not finite.
pub fn read8<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<Quantized<'a, LlmInt8>> {
    let weight = file.tensor(&format!("{prefix}.weight"))?.of(&[Dtype::I8])?;
    let [rows, cols] = weight.dims()?;
    weight.refuse_empty([rows, cols])?;
    let scb = file.tensor(&format!("{prefix}.SCB"))?.of(&[Dtype::F32])?;
    let scb = scb.shaped(&[rows])?;
    if let Some(format) = file.get(&format!("{prefix}.weight_format")) {
        let format = format.of(&[Dtype::U8])?;
        if format.data() != [0] {
            let found = format.data().first().copied().unwrap_or_default();
            return Err(format.content(format!(
                "{found}: this crate reads 0, row by row, and none of the GPU's layouts"
            )));
        }
    }
    let scales = scb.words::<f32>();
    Quantized::from_parts(LlmInt8, [rows, cols], (), weight.data(), scales)
        .map_err(|error| scb.matrix(error))
}

/// The tensors of an LLM.int8 layer `prefix`.
pub fn tensors8<'a>(prefix: &str, matrix: &'a Quantized<'_, LlmInt8>) -> Vec<NewTensor<'a>> {
    let name = |part: &str| format!("{prefix}.{part}");
    let (codes, scales) = (matrix.codes(), matrix.scales());
    vec![
        NewTensor::bytes(name("weight"), Dtype::I8, &matrix.shape(), codes),
        NewTensor::words(name("SCB"), Dtype::F32, &[scales.len()], scales),
        NewTensor::bytes(name("weight_format"), Dtype::U8, &[], vec![0]),
    ]
}
