//! Double quantization: absmax of bitsandbytes' 4-bit blocks in 8 bits (Dettmers et al. 2023, QLoRA,
//! section 3).

use crate::cpu::Cpu;
use crate::error::Result;
use crate::format::Quantized;
use crate::formats::dynamic8::{Dynamic8, DynamicMap};
use crate::view::View;
use alloc::{borrow::Cow, vec::Vec};

/// Blocks of absmax that share a scale in bitsandbytes.
const BLOCK: usize = 256;

/// Absmax in 8 bits: `map[code] · absmax + offset`.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedAbsmax<'a> {
    pub(crate) codes: Cow<'a, [u8]>,
    pub(crate) absmax: Cow<'a, [f32]>,
    /// 256 values.
    pub(crate) map: Cow<'a, [f32]>,
    pub(crate) offset: f32,
    pub(crate) block: usize,
}

impl NestedAbsmax<'static> {
    /// Quantizes absmax, of [`Quantized::scales`], as bitsandbytes does: less its mean, by the signed
    /// dynamic map in blocks of 256.
    ///
    /// The mean is summed in f64 and rounded once. torch sums in f32 in an order that depends on the
    /// machine, so its offset may be another by a few units in the last place.
    ///
    /// # Errors
    /// Absmax that is not finite.
    pub fn new(absmax: &[f32], cpu: &Cpu) -> Result<Self> {
        let sum: f64 = absmax.iter().copied().map(f64::from).sum();
        let offset = (sum / absmax.len().max(1) as f64) as f32;
        let centred: Vec<f32> = absmax.iter().map(|absmax| absmax - offset).collect();
        let format = Dynamic8::new(DynamicMap::Signed, BLOCK)?;
        let view = View::new(&centred, 1, centred.len())?;
        let quantized = Quantized::new(format, view, cpu)?;
        Ok(Self {
            codes: Cow::Owned(quantized.codes().to_vec()),
            absmax: Cow::Owned(quantized.scales().to_vec()),
            map: Cow::Borrowed(DynamicMap::Signed.values()),
            offset,
            block: BLOCK,
        })
    }
}

impl NestedAbsmax<'_> {
    /// The absmax of each block, rounded after each operation as bitsandbytes does.
    pub fn expand(&self) -> Vec<f32> {
        let codes = self.codes.chunks(self.block).zip(&*self.absmax);
        codes
            .flat_map(|(codes, absmax)| codes.iter().map(move |code| (*code, absmax)))
            .map(|(code, absmax)| self.map[usize::from(code)] * absmax + self.offset)
            .collect()
    }

    /// The mean that was taken off.
    pub fn offset(&self) -> f32 {
        self.offset
    }

    /// Refuses numbers that make absmax infinite or NaN, as a file may have.
    #[cfg(feature = "files")]
    pub(crate) fn check(&self) -> Result<()> {
        let parts = [
            ("nested absmax", &*self.absmax),
            ("nested code", &*self.map),
            ("nested offset", &[self.offset]),
        ];
        for (what, values) in parts {
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return Err(crate::Error::Stored {
                    what,
                    index,
                    value: f64::from(values[index]),
                    reason: "it is not finite",
                });
            }
        }
        Ok(())
    }
}
