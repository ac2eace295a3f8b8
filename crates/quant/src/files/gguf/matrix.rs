//! The types of GGUF's tensors that this crate computes with.

use super::{GgmlType, Gguf, GgufWriter};
use crate::files::error::{Error, Result};
use crate::{
    GgufFormat, KFormat, KQuant, Matrix, Q4_0, Q4K, Q6K, Q8_0, Quantized, from_blocks, to_blocks,
};

impl<'a> Gguf<'a> {
    /// A tensor of Q8_0, Q4_0, Q4_K or Q6_K as a matrix: the last two are borrowed, the others are taken
    /// apart. Experts follow each other as rows.
    ///
    /// # Errors
    /// There is none of that name; it is empty or of another type (of F32, F16 and BF16
    /// [`super::GgufTensor::floats`] has the values); a scale that is not finite.
    pub fn matrix(&self, name: &str) -> Result<Box<dyn Matrix + 'a>> {
        let tensor = self.tensor(name)?;
        let (shape, data) = (tensor.matrix_shape(), tensor.data);
        if shape.contains(&0) {
            let reason = format!("an empty matrix {shape:?}");
            return Err(Error::content(self.path(), name, reason));
        }
        let matrix: crate::Result<Box<dyn Matrix + 'a>> = match tensor.kind {
            GgmlType::Q8_0 => from_blocks::<Q8_0>(shape, data).map(|m| Box::new(m) as _),
            GgmlType::Q4_0 => from_blocks::<Q4_0>(shape, data).map(|m| Box::new(m) as _),
            GgmlType::Q4_K => KQuant::<Q4K>::from_blocks(shape, data).map(|m| Box::new(m) as _),
            GgmlType::Q6_K => KQuant::<Q6K>::from_blocks(shape, data).map(|m| Box::new(m) as _),
            kind => {
                let reason = format!("no matrix is made of type {kind}");
                return Err(Error::content(self.path(), name, reason));
            }
        };
        matrix.map_err(|error| Error::matrix(self.path(), name, error))
    }
}

/// A format and its type in GGUF files.
pub trait GgufKind: sealed::Sealed {
    #[doc(hidden)]
    const KIND: GgmlType;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! kind {
    ($($name:ident = $kind:ident),*) => {$(
        impl sealed::Sealed for $name {}
        impl GgufKind for $name {
            const KIND: GgmlType = GgmlType::$kind;
        }
    )*};
}

kind!(Q8_0 = Q8_0, Q4_0 = Q4_0, Q4K = Q4_K, Q6K = Q6_K);

impl<'a> GgufWriter<'a> {
    /// Adds a matrix of Q8_0 or Q4_0.
    ///
    /// # Errors
    /// Rows that are not whole blocks.
    pub fn quantized<F: GgufFormat + GgufKind>(
        &mut self,
        name: &str,
        matrix: &Quantized<F>,
    ) -> Result<()> {
        let blocks = to_blocks(matrix).map_err(|error| Error::quantize(name, error))?;
        self.tensor(name, F::KIND, &matrix.shape(), blocks);
        Ok(())
    }

    /// Adds a matrix of Q4_K or Q6_K, borrowed.
    pub fn k_quant<K: KFormat + GgufKind>(&mut self, name: &str, matrix: &'a KQuant<'_, K>) {
        self.tensor(name, K::KIND, &matrix.shape(), matrix.blocks());
    }
}
