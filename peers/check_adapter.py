"""Logits of a checkpoint with a LoRA adapter by transformers and PEFT."""

import argparse

from common import DTYPES, load, load_adapter, parse_ids, write_logits

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="folder of the base checkpoint")
parser.add_argument("--adapter", required=True, help="folder of adapter_config.json and adapter_model.safetensors")
parser.add_argument("--ids", required=True, type=parse_ids, help="token ids, as in 1,2,3")
parser.add_argument("--out", required=True, help="safetensors file to write: key `logits`, f32 [seq, vocab]")
parser.add_argument("--merge", action="store_true", help="merge the adapter into the base first")
parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="dtype to compute in (default fp32)")
args = parser.parse_args()
model = load_adapter(load(args.model, args.dtype), args.adapter)
if args.merge:
    model = model.merge_and_unload(safe_merge=True)
write_logits(model.eval(), args.ids, args.out)
