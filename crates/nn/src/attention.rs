//! Scaled dot-product attention for encoders, decoders and cross-attention, and the KV cache.

use crate::{Error, Result};
use ferrotune_libtorch::Context;
use ferrotune_libtorch::tch::{Kind, Tensor, no_grad_guard};

/// Who may look at whom.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Everyone at everyone: encoders, cross-attention.
    Full,
    /// The last query sees every key, the one before all but the last, and so on.
    Causal,
    /// Several sequences in one row: each sees itself only, causally. `cu_seqlens` are their
    /// boundaries, from 0 to the row's length.
    Packed(&'a [i64]),
    /// `bool` (true may look) or an additive float, broadcast to `[batch, heads, queries, keys]`.
    Tensor(&'a Tensor),
}

/// softmax(q kᵀ / √head_dim) v, by libtorch's fused kernels (Vaswani et al., 2017).
///
/// # Shapes
/// `q [batch, heads, queries, head_dim]`, `k` and `v [batch, kv_heads, keys, head_dim]`; query head
/// `h` reads key head `h / (heads / kv_heads)`. Returns `[batch, heads, queries, head_dim]`.
///
/// # Errors
/// Shapes that do not fit, more queries than keys under `Causal`, or boundaries that do not cover
/// the row.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask<'_>) -> Result<Tensor> {
    let [(heads, queries), (kv_heads, keys)] = [q, k].map(|t| match t.size()[..] {
        [_, heads, seq, _] => (heads, seq),
        _ => (0, 0),
    });
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || k.size() != v.size() {
        let sizes = (q.size(), k.size(), v.size());
        return Err(Error::Invalid(format!(
            "attention over q {:?}, k {:?}, v {:?}",
            sizes.0, sizes.1, sizes.2
        )));
    }
    match mask {
        Mask::Full => fused(q, k, v, None, false),
        Mask::Tensor(mask) => fused(q, k, v, Some(mask), false),
        Mask::Causal if queries > keys => Err(Error::Invalid(format!(
            "{queries} queries but only {keys} keys under a causal mask"
        ))),
        Mask::Causal if queries == 1 => fused(q, k, v, None, false),
        Mask::Causal if queries == keys => fused(q, k, v, None, true),
        Mask::Causal => {
            let all = Tensor::f_ones([queries, keys], (Kind::Bool, q.device()))?;
            fused(q, k, v, Some(&all.f_tril(keys - queries)?), false)
        }
        Mask::Packed(bounds) => {
            let covers =
                bounds.first() == Some(&0) && bounds.last() == Some(&keys) && queries == keys;
            if !covers || bounds.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(Error::Invalid(format!(
                    "cu_seqlens {bounds:?} do not cut {queries} queries and {keys} keys into sequences"
                )));
            }
            let parts = bounds
                .windows(2)
                .map(|pair| {
                    let part = |t: &Tensor| t.f_narrow(2, pair[0], pair[1] - pair[0]);
                    fused(&part(q)?, &part(k)?, &part(v)?, None, true)
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(Tensor::f_cat(&parts, 2)?)
        }
    }
}

fn fused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor> {
    let (heads, kv_heads) = (q.size()[1], k.size()[1]);
    // The fused CPU kernels take no grouped heads, so keys and values are repeated.
    let widen = |t: &Tensor| -> Result<Tensor> {
        if heads == kv_heads {
            return Ok(t.shallow_clone());
        }
        let [batch, _, keys, dim] = t.size()[..] else {
            return Err(Error::Invalid(format!("keys of shape {:?}", t.size())));
        };
        let group = heads / kv_heads;
        let wide = t
            .f_unsqueeze(2)?
            .f_expand([batch, kv_heads, group, keys, dim], false)?;
        Ok(wide.f_reshape([batch, heads, keys, dim])?)
    };
    let (k, v) = (widen(k)?, widen(v)?);
    Ok(
        Tensor::f_scaled_dot_product_attention(q, &k, &v, mask, 0.0, causal, None, false)
            .on("attention", &[q, &k, &v])?,
    )
}

/// Keys and values of earlier tokens, a pair of buffers a layer.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<Option<LayerCache>>,
    capacity: i64,
}

#[derive(Debug)]
struct LayerCache {
    k: Tensor,
    v: Tensor,
    len: i64,
}

impl KvCache {
    /// A cache with room for `capacity` tokens; it doubles when that is not enough.
    pub fn new(capacity: i64) -> Self {
        Self {
            layers: Vec::new(),
            capacity: capacity.max(1),
        }
    }

    /// The number of tokens held.
    pub fn len(&self) -> i64 {
        self.layers
            .iter()
            .flatten()
            .map(|layer| layer.len)
            .min()
            .unwrap_or(0)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `k` and `v [batch, kv_heads, seq, head_dim]` to a layer and returns all it holds, as
    /// views into the buffers.
    ///
    /// # Errors
    /// Another batch, head count or width than before.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let _guard = no_grad_guard();
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        let new = k.size()[2];
        let len = self.layers[layer].as_ref().map_or(0, |cache| cache.len);
        while self.capacity < len + new {
            self.capacity *= 2;
        }
        let capacity = self.capacity;
        let room = |like: &Tensor| -> Result<Tensor> {
            let mut size = like.size();
            size[2] = capacity;
            Ok(Tensor::f_empty(&size, (like.kind(), like.device()))?)
        };
        let slot = &mut self.layers[layer];
        let cache = match slot.take() {
            Some(cache) if cache.k.size()[2] >= len + new => cache,
            None => LayerCache {
                k: room(k)?,
                v: room(v)?,
                len,
            },
            Some(old) => {
                let grow = |like: &Tensor, old: &Tensor| -> Result<Tensor> {
                    let grown = room(like)?;
                    grown
                        .f_narrow(2, 0, len)?
                        .f_copy_(&old.f_narrow(2, 0, len)?)?;
                    Ok(grown)
                };
                LayerCache {
                    k: grow(k, &old.k)?,
                    v: grow(v, &old.v)?,
                    len,
                }
            }
        };
        let cache = slot.insert(cache);
        cache
            .k
            .f_narrow(2, len, new)?
            .f_copy_(k)
            .on("cache", &[&cache.k, k])?;
        cache
            .v
            .f_narrow(2, len, new)?
            .f_copy_(v)
            .on("cache", &[&cache.v, v])?;
        cache.len = len + new;
        Ok((
            cache.k.f_narrow(2, 0, cache.len)?,
            cache.v.f_narrow(2, 0, cache.len)?,
        ))
    }
}
