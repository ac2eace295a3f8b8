//! A matrix in somebody else's memory.

use crate::element::Element;
use crate::error::{Error, Result};
use core::marker::PhantomData;

/// A matrix `[rows, cols]`, row by row, each row without gaps. Rows may lie further apart than they
/// are long.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    // Not a slice: what lies between two rows may be lent to somebody else for writing.
    start: *const T,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a [T]>,
}

// SAFETY: a view is as many `&[T]` as it has rows, and those may be shared and sent where T is Sync.
unsafe impl<T: Sync> Sync for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for View<'_, T> {}

impl<'a, T: Element> View<'a, T> {
    /// The matrix whose rows follow each other in `data`.
    ///
    /// # Errors
    /// `data` is not `rows × cols` long.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        let expected = elements(rows, cols)?;
        crate::error::length("matrix", expected, data.len())?;
        Ok(Self {
            start: data.as_ptr(),
            rows,
            cols,
            stride: cols,
            borrow: PhantomData,
        })
    }

    /// The matrix whose row `r` begins at `data[r × stride]`.
    ///
    /// # Errors
    /// A stride below `cols`, or `data` too short for the last row.
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        elements(rows, stride)?;
        if stride < cols {
            return Err(Error::Shapes {
                operation: "view",
                left_name: "row stride",
                left: [1, stride],
                right_name: "matrix",
                right: [rows, cols],
            });
        }
        let expected = rows.checked_sub(1).map_or(0, |last| last * stride + cols);
        if data.len() < expected {
            return Err(Error::Length {
                what: "matrix",
                expected,
                found: data.len(),
            });
        }
        Ok(Self {
            start: data.as_ptr(),
            rows,
            cols,
            stride,
            borrow: PhantomData,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `r`; panics past the last, as indexing does.
    pub fn row(&self, r: usize) -> &'a [T] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: the constructors checked that `cols` elements from r·stride lie within what is
        // borrowed for 'a.
        unsafe { core::slice::from_raw_parts(self.start.add(r * self.stride), self.cols) }
    }

    /// All elements, if the rows follow each other.
    pub(crate) fn contiguous(&self) -> Option<&'a [T]> {
        let contiguous = self.stride == self.cols || self.rows <= 1;
        // SAFETY: as for a row; without gaps the rows are one slice.
        contiguous
            .then(|| unsafe { core::slice::from_raw_parts(self.start, self.rows * self.cols) })
    }
}

/// An array of whatever strides, as long as the elements of a row follow each other.
#[cfg(feature = "ndarray")]
impl<'a, T: Element> TryFrom<ndarray::ArrayView2<'a, T>> for View<'a, T> {
    type Error = Error;

    fn try_from(array: ndarray::ArrayView2<'a, T>) -> Result<Self> {
        let (rows, cols) = array.dim();
        let stride = match array.strides() {
            [_, _] if rows == 0 || cols == 0 => return Self::new(&[], rows, cols),
            // A stride of an axis of length one means nothing.
            [_, across] if cols > 1 && *across != 1 => None,
            [_, _] if rows == 1 => Some(cols),
            [down, _] => usize::try_from(*down).ok().filter(|down| *down >= cols),
            _ => None,
        };
        let stride = stride.ok_or_else(|| Error::Unsupported {
            operation: "view of an ndarray",
            reason: alloc::format!(
                "strides {:?} of shape {:?}: rows must lie one after another and without gaps; \
                 as_standard_layout() makes such a copy",
                array.strides(),
                array.shape()
            ),
        })?;
        // The elements are r·stride + c for r < rows and c < cols, and the array lends them for 'a.
        Ok(Self {
            start: array.as_ptr(),
            rows,
            cols,
            stride,
            borrow: PhantomData,
        })
    }
}

/// `rows × cols`, if a machine can count that far.
pub(crate) fn elements(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols)
        .filter(|n| *n <= isize::MAX as usize / 8)
        .ok_or_else(|| Error::Unsupported {
            operation: "shape",
            reason: alloc::format!("[{rows}, {cols}] has more elements than memory can hold"),
        })
}
