//! A quantized matrix, and back to values.

use super::quantize::{NonFinite, quantize_into, rows_a_piece, sizes};
use super::{Extent, Format};
use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::{Error, Result, length};
use crate::parallel::{Parts, for_each};
use crate::simd::{self, Simd, Work};
use crate::view::View;
use alloc::{borrow::Cow, vec, vec::Vec};

/// A quantized matrix `[rows, cols]`: borrowed, from a file that is mapped, or owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized<'a, F: Format> {
    format: F,
    rows: usize,
    cols: usize,
    tensor: F::Tensor,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [F::Scale]>,
}

impl<F: Format> Quantized<'static, F> {
    /// Quantizes a matrix into new memory. [`quantize_into`] takes the caller's.
    ///
    /// # Errors
    /// A shape that the format cannot hold; a value that is not finite.
    pub fn new<T: Element>(format: F, matrix: View<T>, cpu: &Cpu) -> Result<Self> {
        Self::with(format, matrix, NonFinite::Refuse, cpu)
    }

    /// The same with a choice about values that are not finite.
    ///
    /// # Errors
    /// A shape that the format cannot hold; a value that is not finite, if those are refused.
    pub fn with<T: Element>(
        format: F,
        matrix: View<T>,
        non_finite: NonFinite,
        cpu: &Cpu,
    ) -> Result<Self> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let [codes, scales] = sizes(&format, rows, cols)?;
        let mut codes = vec![0; codes];
        let tensor = format.tensor(0.0);
        let mut scales = vec![format.fit(&tensor, Extent::NOTHING).0; scales];
        let tensor = quantize_into(&format, matrix, &mut codes, &mut scales, non_finite, cpu)?;
        Ok(Self {
            format,
            rows,
            cols,
            tensor,
            codes: codes.into(),
            scales: scales.into(),
        })
    }
}

impl<'a, F: Format> Quantized<'a, F> {
    /// A matrix from its stored parts.
    ///
    /// # Errors
    /// A shape that the format cannot hold, parts of another length, a scale that is not finite.
    pub fn from_parts(
        format: F,
        [rows, cols]: [usize; 2],
        tensor: F::Tensor,
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [F::Scale]>>,
    ) -> Result<Self> {
        let (codes, scales) = (codes.into(), scales.into());
        let expected = sizes(&format, rows, cols)?;
        length("codes", expected[0], codes.len())?;
        length("scales", expected[1], scales.len())?;
        if !format.factor(&tensor).is_finite() {
            return Err(Error::Stored {
                what: "scale of the tensor",
                index: 0,
                value: f64::from(format.factor(&tensor)),
                reason: "it is not finite",
            });
        }
        if let Some(index) = scales.iter().position(|scale| !format.valid(*scale)) {
            return Err(Error::Stored {
                what: "scale",
                index,
                value: f64::from(format.affine(scales[index]).0),
                reason: "it or its zero point is not finite",
            });
        }
        Ok(Self {
            format,
            rows,
            cols,
            tensor,
            codes,
            scales,
        })
    }

    /// The format.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// What is stored for the tensor as a whole.
    pub fn tensor(&self) -> F::Tensor {
        self.tensor
    }

    /// The codes, as [`Format::CODES`] lays them out.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales, group by group.
    pub fn scales(&self) -> &[F::Scale] {
        &self.scales
    }

    /// The code of an element.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        F::CODES.code(&self.codes, row * self.cols + col)
    }

    /// Bits for each weight, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        let bits = 8 * self.codes.len() + self.scales.len() * self.format.scale_bits();
        bits as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// The same in memory of its own.
    pub fn into_owned(self) -> Quantized<'static, F> {
        Quantized {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            tensor: self.tensor,
            codes: self.codes.into_owned().into(),
            scales: self.scales.into_owned().into(),
        }
    }

    /// Writes all values, row by row, rounded once to the type of `out`.
    ///
    /// # Errors
    /// `out` of another length.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T], cpu: &Cpu) -> Result<()> {
        length("output", self.rows * self.cols, out.len())?;
        let parts = Parts::new(out);
        for_each(
            cpu.parallel(),
            self.rows,
            rows_a_piece(self.cols),
            |_, rows| {
                let range = rows.start * self.cols..rows.end * self.cols;
                // SAFETY: rows are handed out once, so ranges do not overlap.
                let out = unsafe { parts.part(range.clone()) };
                simd::run(
                    cpu.isa(),
                    Decode {
                        matrix: self,
                        first: range.start,
                        out,
                    },
                );
            },
        );
        Ok(())
    }

    /// All values in new memory.
    pub fn dequantize(&self, cpu: &Cpu) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        // The length is right by construction.
        let _ = self.dequantize_into(&mut out, cpu);
        out
    }
}

/// Some elements' values.
struct Decode<'a, 'b, F: Format, T> {
    matrix: &'a Quantized<'b, F>,
    first: usize,
    out: &'a mut [T],
}

impl<F: Format, T: Element> Work for Decode<'_, '_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Quantized {
            format,
            rows,
            cols,
            tensor,
            codes,
            scales,
        } = self.matrix;
        let grouping = format.grouping();
        let mut at = self.first;
        let mut out = self.out;
        while !out.is_empty() {
            let group = grouping.of(at, *cols);
            let end = grouping.range(group, *rows, *cols).end.min(at + out.len());
            let (now, later) = out.split_at_mut(end - at);
            for (i, out) in (at..).zip(now) {
                let code = F::CODES.code(codes, i);
                *out = T::from_f32(format.decode(tensor, scales[group], code));
            }
            (at, out) = (end, later);
        }
    }
}
