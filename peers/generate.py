"""Greedy tokens by transformers, one line of comma-separated ids (the prompt is not repeated)."""

import argparse

from common import greedy, load, parse_ids

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="folder of the checkpoint")
parser.add_argument("--ids", required=True, type=parse_ids, help="the prompt's token ids, as in 1,2,3")
parser.add_argument("--steps", type=int, default=64, help="tokens to generate; an end token does not stop it (default 64)")
args = parser.parse_args()
tokens, _ = greedy(load(args.model), args.ids, args.steps)
print(",".join(str(token) for token in tokens.tolist()))
