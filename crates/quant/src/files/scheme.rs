//! The formats by name, for command lines and for files whose format is not known before.

use super::error::{Error, Result};
use super::mxfp4;
use super::nvfp4::{self, NvFp4Keys, NvFp4Layer};
use super::tensors::Safetensors;
use super::writer::NewTensor;
use super::{TorchDtype, awq, bnb, compressed, gptq};
use crate::{
    Awq, Cpu, Element, Fp4, Gptq, Int4, LlmInt8, Matrix, MxFp4, NestedAbsmax, Nf4, NvFp4,
    Quantized, View, ZeroConvention,
};
use std::fmt;
use std::str::FromStr;

/// A format of weights in a safetensors file: what codes are, and which keys they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// bitsandbytes NF4 in blocks of 64.
    Nf4,
    /// The same with absmax in 8 bits.
    Nf4Nested,
    /// bitsandbytes FP4 in blocks of 64.
    Fp4,
    /// The same with absmax in 8 bits.
    Fp4Nested,
    /// bitsandbytes LLM.int8.
    Int8,
    /// compressed-tensors `pack-quantized`: 4 bits, symmetric, in groups of 128.
    Int4,
    /// gpt-oss MXFP4: one expert `[1, rows, cols ÷ 32, 16]`.
    MxFp4,
    /// compressed-tensors NVFP4.
    NvFp4,
    /// ModelOpt NVFP4.
    NvFp4ModelOpt,
    /// GPTQ's packing of 4 bits, [`ZeroConvention::MinusOne`]: rounded to nearest, symmetric, in groups
    /// of 128. Calibrated codes go through [`gptq::tensors`]; files of `gptq_v2`, which look the same,
    /// through [`gptq::read`].
    Gptq,
    /// AWQ's packing of 4 bits: rounded to nearest, asymmetric, in groups of 128. Calibrated codes go
    /// through [`awq::tensors`].
    Awq,
}

impl Scheme {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Nf4,
        Self::Nf4Nested,
        Self::Fp4,
        Self::Fp4Nested,
        Self::Int8,
        Self::Int4,
        Self::MxFp4,
        Self::NvFp4,
        Self::NvFp4ModelOpt,
        Self::Gptq,
        Self::Awq,
    ];

    /// Its name in command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Nf4Nested => "nf4-nested",
            Self::Fp4 => "fp4",
            Self::Fp4Nested => "fp4-nested",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::MxFp4 => "mxfp4",
            Self::NvFp4 => "nvfp4",
            Self::NvFp4ModelOpt => "nvfp4-modelopt",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
        }
    }

    /// Quantizes a weight, and returns the tensors of its layer `prefix`: of `P` for `P.weight`.
    ///
    /// # Errors
    /// A shape that the format cannot hold; a value that is not finite.
    pub fn quantize<T: Element>(
        self,
        prefix: &str,
        weight: View<T>,
        cpu: &Cpu,
    ) -> Result<Vec<NewTensor<'static>>> {
        let wrap = |error| Error::quantize(prefix, error);
        let dtype = TorchDtype::of::<T>();
        let tensors = match self {
            Self::Nf4 | Self::Nf4Nested => {
                let format = Nf4::new(64).map_err(wrap)?;
                let matrix = Quantized::new(format, weight, cpu).map_err(wrap)?;
                return self.bnb4(prefix, &matrix, dtype, cpu);
            }
            Self::Fp4 | Self::Fp4Nested => {
                let format = Fp4::new(64).map_err(wrap)?;
                let matrix = Quantized::new(format, weight, cpu).map_err(wrap)?;
                return self.bnb4(prefix, &matrix, dtype, cpu);
            }
            Self::Int8 => {
                let matrix = Quantized::new(LlmInt8, weight, cpu).map_err(wrap)?;
                owned(bnb::tensors8(prefix, &matrix))
            }
            Self::Int4 => {
                let matrix = compressed::PackQuantized::quantize(weight, group(weight.cols()))
                    .map_err(wrap)?;
                owned(matrix.tensors(prefix))
            }
            Self::MxFp4 => {
                let matrix = Quantized::new(MxFp4::default(), weight, cpu).map_err(wrap)?;
                owned(mxfp4::tensors(prefix, &[matrix])?)
            }
            Self::NvFp4 | Self::NvFp4ModelOpt => {
                let matrix = Quantized::new(NvFp4, weight, cpu).map_err(wrap)?;
                let layer = NvFp4Layer {
                    matrix,
                    input: None,
                };
                let keys = match self {
                    Self::NvFp4 => NvFp4Keys::CompressedTensors,
                    _ => NvFp4Keys::ModelOpt,
                };
                owned(nvfp4::tensors(prefix, &layer, keys)?)
            }
            Self::Gptq => {
                let matrix = int4(weight, true, cpu).map_err(wrap)?;
                let matrix = Gptq::from_quantized(&matrix, ZeroConvention::MinusOne);
                owned(gptq::tensors(prefix, &matrix.map_err(wrap)?))
            }
            Self::Awq => {
                let matrix = int4(weight, false, cpu).map_err(wrap)?;
                let matrix = Awq::from_quantized(&matrix);
                owned(awq::tensors(prefix, &matrix.map_err(wrap)?))
            }
        };
        Ok(tensors)
    }

    fn bnb4<F: bnb::Bnb4Format>(
        self,
        prefix: &str,
        matrix: &Quantized<F>,
        dtype: TorchDtype,
        cpu: &Cpu,
    ) -> Result<Vec<NewTensor<'static>>> {
        let nested = match self {
            Self::Nf4Nested | Self::Fp4Nested => {
                let nested = NestedAbsmax::new(matrix.scales(), cpu);
                Some(nested.map_err(|error| Error::quantize(prefix, error))?)
            }
            _ => None,
        };
        bnb::tensors4(prefix, matrix, dtype, nested.as_ref()).map(owned)
    }

    /// The scheme of the layer `prefix` of a file, by its keys.
    pub fn of(file: &Safetensors, prefix: &str) -> Option<Self> {
        let has = |name: &str| file.get(&format!("{prefix}{name}")).is_some();
        let nested = has(".weight.nested_absmax");
        if has(".weight.quant_state.bitsandbytes__nf4") {
            Some(if nested { Self::Nf4Nested } else { Self::Nf4 })
        } else if has(".weight.quant_state.bitsandbytes__fp4") {
            Some(if nested { Self::Fp4Nested } else { Self::Fp4 })
        } else if has(".SCB") {
            Some(Self::Int8)
        } else if has(".weight_global_scale") {
            Some(Self::NvFp4)
        } else if has(".weight_scale_2") {
            Some(Self::NvFp4ModelOpt)
        } else if has(".weight_packed") && has(".weight_shape") {
            Some(Self::Int4)
        } else if has(".qweight") && has(".qzeros") {
            // GPTQ packs input channels, so its words are [in ÷ 8, out]; AWQ's are [in, out ÷ 8].
            let sides = |name: &str| file.get(&format!("{prefix}{name}"))?.dims::<2>().ok();
            let (words, zeros) = (sides(".qweight")?, sides(".qzeros")?);
            Some(if words[1] == zeros[1] {
                Self::Awq
            } else {
                Self::Gptq
            })
        } else if has("_blocks") && has("_scales") {
            Some(Self::MxFp4)
        } else {
            None
        }
    }

    /// The layers of a file that have a scheme, in the order of their names.
    pub fn layers(file: &Safetensors) -> Vec<(String, Self)> {
        // One key of each scheme, which names the layer.
        let suffixes = [
            ".weight.quant_map",
            ".SCB",
            ".weight_global_scale",
            ".weight_scale_2",
            ".weight_shape",
            ".qweight",
            "_blocks",
        ];
        let mut layers = Vec::new();
        for name in file.names() {
            let prefix = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
            if let Some((prefix, scheme)) = prefix.and_then(|p| Some((p, Self::of(file, p)?))) {
                layers.push((prefix.to_owned(), scheme));
            }
        }
        layers.sort_by(|left, right| left.0.cmp(&right.0));
        layers
    }

    /// Reads the layer `prefix`, whose scheme [`Scheme::of`] knows. Of experts the first is read;
    /// [`mxfp4::read`] has them all.
    ///
    /// # Errors
    /// Those of the scheme's reader.
    pub fn read<'a>(self, file: &Safetensors<'a>, prefix: &str) -> Result<Box<dyn Matrix + 'a>> {
        Ok(match self {
            Self::Nf4 | Self::Nf4Nested | Self::Fp4 | Self::Fp4Nested => {
                bnb::read4(file, prefix)?.matrix.into_matrix()
            }
            Self::Int8 => Box::new(bnb::read8(file, prefix)?),
            Self::Int4 => Box::new(compressed::read(file, prefix)?),
            Self::MxFp4 => Box::new(mxfp4::read(file, prefix)?.expert(0)?),
            Self::NvFp4 => {
                let layer = nvfp4::read(file, prefix, NvFp4Keys::CompressedTensors)?;
                Box::new(layer.matrix)
            }
            Self::NvFp4ModelOpt => {
                let layer = nvfp4::read(file, prefix, NvFp4Keys::ModelOpt)?;
                Box::new(layer.matrix)
            }
            Self::Gptq => Box::new(gptq::read(file, prefix, ZeroConvention::MinusOne)?),
            Self::Awq => Box::new(awq::read(file, prefix)?),
        })
    }
}

/// Rounded to nearest in groups.
fn int4<T: Element>(
    weight: View<T>,
    symmetric: bool,
    cpu: &Cpu,
) -> crate::Result<Quantized<'static, Int4>> {
    let size = Some(group(weight.cols())).filter(|size| *size < weight.cols());
    Quantized::new(Int4::new(size, symmetric)?, weight, cpu)
}

/// Columns of a group: the usual, or what there is.
fn group(cols: usize) -> usize {
    let sizes = [128, 64, 32].into_iter();
    let mut whole = sizes.filter(|size| cols.is_multiple_of(*size));
    whole.next().unwrap_or(cols)
}

fn owned(tensors: Vec<NewTensor>) -> Vec<NewTensor<'static>> {
    tensors.into_iter().map(NewTensor::into_owned).collect()
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    /// # Errors
    /// A name that no scheme has.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|scheme| scheme.name() == name);
        found.copied().ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|scheme| scheme.name()).collect();
            Error::Scheme {
                name: name.to_owned(),
                known: known.join(", "),
            }
        })
    }
}
