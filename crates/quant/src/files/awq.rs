//! AWQ with 4 bits, as AutoAWQ's GEMM layers have it. Of a weight `[out, in]` in `G` groups of input
//! features that are neighbours:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.qweight` | I32 `[in, out ÷ 8]` | codes, see [`Awq`] |
//! | `P.qzeros` | I32 `[G, out ÷ 8]` | zero points |
//! | `P.scales` | F16 `[G, out]` | |

use super::error::Result;
use super::tensors::Safetensors;
use super::writer::NewTensor;
use crate::{Awq, f16};
use safetensors::Dtype;

/// Reads the layer `prefix`; parts that are aligned are borrowed.
///
/// # Errors
/// A part that is not there, or of another type or shape; groups that do not divide the input features;
/// a scale that is not finite.
pub fn read<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<Awq<'a>> {
    let part = |name: &str| file.tensor(&format!("{prefix}.{name}"));
    let qweight = part("qweight")?.of(&[Dtype::I32])?;
    let [inputs, words] = qweight.dims()?;
    qweight.refuse_empty([words, inputs])?;
    // Eight times a length in memory, of 4 bytes each, does not overflow.
    let out = 8 * words;
    let qzeros = part("qzeros")?.of(&[Dtype::I32])?;
    let [groups, _] = qzeros.dims()?;
    if groups == 0 || inputs % groups != 0 {
        return Err(qzeros.misshapen(format!(
            "[groups, {words}], where groups divide {inputs} input features"
        )));
    }
    let qzeros = qzeros.shaped(&[groups, words])?;
    let scales = part("scales")?.of(&[Dtype::F16])?.shaped(&[groups, out])?;
    let (codes, zeros) = (qweight.words::<i32>(), qzeros.words::<i32>());
    Awq::from_tensors([out, inputs], codes, zeros, scales.words::<f16>())
        .map_err(|error| scales.matrix(error))
}

/// The tensors of a layer `prefix`.
pub fn tensors<'a>(prefix: &str, matrix: &'a Awq<'_>) -> Vec<NewTensor<'a>> {
    let key = |name: &str| format!("{prefix}.{name}");
    let ([out, inputs], groups) = (matrix.shape(), matrix.groups());
    let (qweight, qzeros, scales) = matrix.tensors();
    let words = out / 8;
    vec![
        NewTensor::words(key("qweight"), Dtype::I32, &[inputs, words], qweight),
        NewTensor::words(key("qzeros"), Dtype::I32, &[groups, words], qzeros),
        NewTensor::words(key("scales"), Dtype::F16, &[groups, out], scales),
    ]
}
