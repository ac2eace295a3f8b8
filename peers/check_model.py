"""Logits of a checkpoint (plain or merged) by transformers."""

import argparse

from common import DTYPES, load, parse_ids, write_logits

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="folder of the checkpoint")
parser.add_argument("--ids", required=True, type=parse_ids, help="token ids, as in 1,2,3")
parser.add_argument("--out", required=True, help="safetensors file to write: key `logits`, f32 [seq, vocab]")
parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="dtype to compute in (default fp32)")
args = parser.parse_args()
write_logits(load(args.model, args.dtype), args.ids, args.out)
