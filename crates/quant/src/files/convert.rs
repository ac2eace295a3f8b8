//! A whole safetensors file quantized, tensor by tensor.

use super::error::{Error, Result};
use super::scheme::Scheme;
use super::tensors::{Safetensors, Tensor};
use super::words::Word;
use super::writer::{NewTensor, SafetensorsWriter};
use crate::parallel::{Parts, Turns};
use crate::{Cpu, Element, Matrix, View, bf16, f16};
use safetensors::Dtype;
use std::path::Path;

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Its name in the file that was read.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes in the file that was read, and in the one that was written.
    pub bytes: [usize; 2],
    /// Quantized, or copied as it was.
    pub outcome: Outcome,
}

/// Whether a tensor was quantized.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was, and a reader of the new file gets values with these errors.
    Quantized {
        /// Root mean square of the errors over that of the values.
        relative: f64,
        /// The largest error.
        worst: f32,
    },
    /// It was copied, and why.
    Copied(String),
}

/// Quantizes every matrix `P.weight` of `input` that `wanted` says yes to, copies the other tensors, and
/// writes `output` when all are done, whole or not at all. `each` hears of every tensor, in the order of
/// the file. Quantized tensors are held until then; copied ones are not.
///
/// Weights that the scheme cannot hold, for their shape, are copied too.
///
/// # Errors
/// A weight with a value that is not finite; what the system says about `output`.
pub fn convert(
    input: &Safetensors,
    scheme: Scheme,
    output: &Path,
    cpu: &Cpu,
    wanted: impl Fn(&str) -> bool,
    mut each: impl FnMut(&Converted),
) -> Result<Vec<Converted>> {
    let mut writer = SafetensorsWriter::new();
    let mut all = Vec::new();
    for name in input.names() {
        let tensor = input.tensor(&name)?;
        let (shape, before) = (tensor.shape().to_vec(), tensor.data().len());
        let reason = why_not(&tensor, &wanted);
        let quantized = match reason {
            Some(reason) => Err(reason),
            None => match tensor.dtype() {
                Dtype::F16 => quantize::<f16>(&tensor, scheme, cpu)?,
                Dtype::BF16 => quantize::<bf16>(&tensor, scheme, cpu)?,
                _ => quantize::<f32>(&tensor, scheme, cpu)?,
            },
        };
        let (outcome, after) = match quantized {
            Ok((tensors, outcome)) => {
                let bytes = tensors.iter().map(|tensor| tensor.data.len()).sum();
                writer.extend(tensors);
                (outcome, bytes)
            }
            Err(reason) => {
                writer.add(NewTensor::from(tensor));
                (Outcome::Copied(reason), before)
            }
        };
        let converted = Converted {
            name,
            shape,
            bytes: [before, after],
            outcome,
        };
        each(&converted);
        all.push(converted);
    }
    writer.metadata("format", "pt");
    writer.write(output)?;
    Ok(all)
}

fn why_not(tensor: &Tensor, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let reason = if !tensor.key().ends_with(".weight") {
        "not a weight"
    } else if tensor.shape().len() != 2 || tensor.shape().contains(&0) {
        "not a matrix"
    } else if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        "not in f32, f16 or bf16"
    } else if !wanted(tensor.key()) {
        "kept"
    } else {
        return None;
    };
    Some(reason.to_owned())
}

/// The tensors of a quantized weight and its errors, or why the scheme cannot hold it.
type Quantization = Result<(Vec<NewTensor<'static>>, Outcome), String>;

fn quantize<T: Element + Word>(tensor: &Tensor, scheme: Scheme, cpu: &Cpu) -> Result<Quantization> {
    let [rows, cols] = tensor.dims()?;
    let values = tensor.words::<T>();
    let view = View::new(&values, rows, cols).map_err(|error| tensor.matrix(error))?;
    let prefix = tensor.key().strip_suffix(".weight").unwrap_or(tensor.key());
    let tensors = match scheme.quantize(prefix, view, cpu) {
        Ok(tensors) => tensors,
        // The file is the culprit, not the scheme.
        Err(Error::Quantize { source, .. })
            if matches!(*source, crate::Error::NonFinite { .. }) =>
        {
            return Err(tensor.matrix(*source));
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    // As a reader of the new file will see it.
    let mut writer = SafetensorsWriter::new();
    writer.extend(tensors.iter().cloned());
    let bytes = writer.to_vec()?;
    let file = Safetensors::new("quantized", &bytes)?;
    let matrix = scheme.read(&file, prefix)?;
    let outcome = errors(view, &*matrix, cpu);
    Ok(Ok((tensors, outcome)))
}

/// The errors of a quantized matrix: sums row by row, so that the threads do not matter.
fn errors<T: Element>(exact: View<T>, matrix: &dyn Matrix, cpu: &Cpu) -> Outcome {
    let (rows, cols) = (exact.rows(), exact.cols());
    let mut sums = vec![(0.0_f64, 0.0_f64, 0.0_f32); rows];
    let turns = Turns::new(cpu.parallel(), rows, 1);
    let mut rooms = vec![vec![0.0_f32; cols]; turns.slots()];
    let (parts, rooms) = (Parts::new(&mut sums), Parts::new(&mut rooms));
    turns.each(|worker, range| {
        // SAFETY: no two calls have the same worker at the same time.
        let room = &mut unsafe { rooms.part(worker..worker + 1) }[0];
        for row in range {
            // SAFETY: rows are handed out once.
            let sum = &mut unsafe { parts.part(row..row + 1) }[0];
            matrix.dequantize_row(row, room);
            for (value, found) in exact.row(row).iter().zip(&*room) {
                let value = value.to_f32();
                let error = found - value;
                sum.0 += f64::from(error) * f64::from(error);
                sum.1 += f64::from(value) * f64::from(value);
                sum.2 = sum.2.max(error.abs());
            }
        }
    });
    let noise: f64 = sums.iter().map(|sum| sum.0).sum();
    let signal: f64 = sums.iter().map(|sum| sum.1).sum();
    Outcome::Quantized {
        relative: if noise > 0.0 {
            (noise / signal).sqrt()
        } else {
            0.0
        },
        worst: sums.iter().fold(0.0, |worst, sum| sum.2.max(worst)),
    }
}
