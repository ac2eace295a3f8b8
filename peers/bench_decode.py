"""Greedy decoding by transformers' generate, one continuation of a prompt for each line read from standard input.

The base and the prompt (the first --prompt tokens of its ids) are those that `bench_lora_step.py --save` left in a
folder. The protocol is that script's: a line of JSON when ready, then one for each continuation: {"seconds",
"cpu_seconds", "tokens", "ids", "peak_rss_bytes"}. The seconds are those of the prompt and of all new tokens together.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from common import load  # first: it turns the network off

import torch
from bench_lora_step import idle, restart_peak, status
from safetensors.torch import load_file


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, required=True, help="the folder")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="default %(default)s")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    return parser.parse_args()


@torch.no_grad()
def main():
    args = parse_args()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(args.threads)
    idle_rss = idle()
    model = load(args.load / "base", args.dtype)
    model.generation_config.eos_token_id = None
    prompt = load_file(args.load / "ids.safetensors")["ids"][:1, : args.prompt]
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "trainable": 0}
    memory = {"idle_rss_bytes": idle_rss, "load_peak_rss_bytes": status("VmHWM")}
    restart_peak()
    print(json.dumps({"ready": True} | counts | memory), flush=True)
    for _ in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=args.new_tokens,
            pad_token_id=0,
        )
        ids = out[0, prompt.shape[1] :].tolist()
        times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        answer = {"tokens": len(ids), "ids": ids, "peak_rss_bytes": status("VmHWM")}
        print(json.dumps(times | answer), flush=True)


if __name__ == "__main__":
    main()
