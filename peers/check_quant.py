"""Reads a quantized file with the real peer and compares the weights it dequantizes with expected ones, bit for bit.

KIND says which peer reads FILE:
  bnb4      bitsandbytes, 4 bit (nf4 or fp4, nested or not), by Params4bit.from_prequantized
  bnb8      bitsandbytes, LLM.int8 (Linear8bitLt)
  gguf      gguf.GGUFReader and gguf.quants.dequantize
  ct        compressed-tensors, pack-quantized or nvfp4-pack-quantized by the keys that a weight has
  mxfp4     transformers' convert_moe_packed_tensors, for the `_blocks` and `_scales` of gpt-oss
  gptq      scale * (code - zero point), 4 bit, g_idx, `checkpoint_format: gptq` (zero points stored minus 1)
  gptq_v2   the same with zero points as they are
  awq       scale * (code - zero point), 4 bit, the GEMM layout

GPTQ and AWQ are read by their formula, not by a peer: GPTQModel cannot stand beside PEFT without optimum.

EXPECTED is a safetensors file of f32 matrices [out, in] ([experts, out, in] for mxfp4): `P.weight` for a layer P, or a
tensor's own name in gguf. Names must be the same on both sides. A peer that answers in 16 bit (bnb4 in the dtype of its
quant_state, ct in that of its scale or bf16, mxfp4 bf16) is compared with the expected value rounded to that dtype.
"""

import argparse
import logging
import os
import sys

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles its fallbacks otherwise
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import common  # noqa: E402, F401  (offline, deterministic)
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def layers(tensors, suffix):
    """Each layer that has a tensor `P<suffix>`, as P and its tensors without the prefix `P.`."""
    for prefix in [name[: -len(suffix)] for name in tensors if name.endswith(suffix)]:
        yield prefix, {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}


def bnb4(path, dtype=None):
    import bitsandbytes as bnb

    out = {}
    for prefix, part in layers(load_file(path), ".weight.absmax"):
        # What Linear4bit takes: the packed weight and, next to it, the parts of its quant_state.
        stats = {k[len("weight.") :]: v for k, v in part.items() if k.startswith("weight.")}
        weight = bnb.nn.Params4bit.from_prequantized(part["weight"], stats, device="cpu")
        state = weight.quant_state
        state.dtype = dtype or state.dtype
        # As one flat row: the CPU kernel reads wrong scales where a block of more than 64 crosses the end of a row.
        shape, state.shape = state.shape, torch.Size([state.shape.numel()])
        out[prefix + ".weight"] = bnb.functional.dequantize_4bit(weight.data, state).reshape(shape)
    return out


def bnb8(path, dtype=None):
    import bitsandbytes as bnb

    out = {}
    for prefix, part in layers(load_file(path), ".SCB"):
        rows, cols = part["weight"].shape
        layer = bnb.nn.Linear8bitLt(cols, rows, bias="bias" in part, has_fp16_weights=False).to("cpu")
        layer.load_state_dict(part)
        out[prefix + ".weight"] = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    return out


def gguf(path, dtype=None):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    out = {}
    for tensor in GGUFReader(path).tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        out[tensor.name] = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).reshape(shape).copy())
    return out


def ct(path, dtype=None):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    out = {}
    for prefix, part in layers(load_file(path), ".weight_packed"):
        part.pop("bias", None)
        scheme = ct_scheme(part)
        if "weight_global_scale" not in part:
            if dtype is not None:
                part["weight_scale"] = part["weight_scale"].to(dtype)
            peer = BaseCompressor.get_value_from_registry("pack-quantized")
            weight = peer.decompress(part, scheme)["weight"]
        elif dtype is None:
            peer = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
            weight = peer.decompress(part, scheme)["weight"]
        else:  # what decompress does, which always ends in bf16
            rows, half = part["weight_packed"].shape
            weight = dequantize(
                unpack_fp4_from_uint8(part["weight_packed"], rows, 2 * half, dtype=dtype),
                part["weight_scale"].to(dtype),
                args=scheme.weights,
                global_scale=part["weight_global_scale"],
            )
        out[prefix + ".weight"] = weight
    return out


def ct_scheme(part):
    """The QuantizationScheme of a layer, which a checkpoint keeps in its configuration, from its tensors' shapes."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import NVFP4A16

    if "weight_global_scale" in part:
        return QuantizationScheme(targets=["Linear"], **NVFP4A16)
    group = int(part["weight_shape"][1]) // part["weight_scale"].shape[1]
    weights = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=group, symmetric="weight_zero_point" not in part
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def mxfp4(path, dtype=None):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(path)
    out = {}
    for name in [name for name in tensors if name.endswith("_blocks")]:
        prefix = name[: -len("_blocks")]
        # The peer answers [experts, in, out], the layout of its parameters.
        weight = convert_moe_packed_tensors(tensors[name], tensors[prefix + "_scales"], dtype=dtype or torch.bfloat16)
        out[prefix + ".weight"] = weight.transpose(1, 2).contiguous()
    return out


def gptq(path, dtype=None, v1=True):
    out = {}
    for prefix, part in layers(load_file(path), ".g_idx"):
        codes = unpack_int4(part["qweight"].T)
        zeros = unpack_int4(part["qzeros"]).T + int(v1)
        group = part["g_idx"].long()
        out[prefix + ".weight"] = part["scales"].float().T[:, group] * (codes - zeros[:, group])
    return out


def gptq_v2(path, dtype=None):
    return gptq(path, dtype, v1=False)


def awq(path, dtype=None):
    out = {}
    for prefix, part in layers(load_file(path), ".qweight"):
        back = torch.tensor(AWQ_ORDER).argsort()
        codes = unpack_int4(part["qweight"]).unflatten(1, (-1, 8))[..., back].flatten(1)
        zeros = unpack_int4(part["qzeros"]).unflatten(1, (-1, 8))[..., back].flatten(1)
        group = torch.arange(len(codes)) // (len(codes) // len(zeros))
        out[prefix + ".weight"] = (part["scales"].float()[group] * (codes - zeros[group])).T.contiguous()
    return out


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble k of a word holds this one of its eight columns


def unpack_int4(words):
    """The eight nibbles of each i32, the lowest first: [rows, n] as i64 [rows, 8 n]."""
    return (words.long().unsqueeze(-1) >> torch.arange(0, 32, 4) & 15).flatten(1)


PEERS = {f.__name__: f for f in (bnb4, bnb8, gguf, ct, mxfp4, gptq, gptq_v2, awq)}


def compare(got, expected):
    """What is wrong with the peer's tensors, a line each."""
    for name in sorted(got.keys() ^ expected.keys()):
        yield f"{name}: only in {'FILE' if name in got else 'EXPECTED'}"
    for name in sorted(got.keys() & expected.keys()):
        a, b = got[name], expected[name]
        if a.shape != b.shape:
            yield f"{name}: the peer has shape {tuple(a.shape)}, expected {tuple(b.shape)}"
            continue
        a, b = a.float(), b.to(a.dtype).float()
        differs = ~((a == b) | (a.isnan() & b.isnan()))
        if differs.any():
            worst = (a - b)[differs].abs().max().item()
            yield f"{name}: {int(differs.sum())} of {a.numel()} differ, by {worst:g} at most"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=PEERS, metavar="KIND")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("expected", metavar="EXPECTED")
    args = parser.parse_args()

    got = PEERS[args.kind](args.file)
    wrong = list(compare(got, load_file(args.expected)))
    if not got:
        wrong.append(f"{args.file}: no weight of kind {args.kind}")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in got.values()})
    print(f"{len(got)} weights equal ({', '.join(dtypes)})")


if __name__ == "__main__":
    main()
