"""Trains a LoRA adapter by transformers and PEFT: AdamW, no clipping, no schedule, one batch a step in the file's order.

Prints a line of JSON a step: {"step", "loss", "grad_norm"}. The loss is transformers' own: labels shifted by one,
the mean over all labels of the batch that are not -100. The norm is that of the gradients before the step.
"""

import argparse
import json

import torch
from safetensors.torch import load_file

from common import load, load_adapter

# The hyperparameters of the recorded runs; every option below starts from them.
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def train(model, ids, labels, adamw=ADAMW):
    """Trains what requires grad in `model` on i64 [steps, batch, seq]; yields (loss, grad_norm) a step."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, **adamw)
    model.train()
    for step_ids, step_labels in zip(ids, labels, strict=True):
        loss = model(input_ids=step_ids, labels=step_labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in params])
        optimizer.step()
        yield loss.item(), norm.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base checkpoint")
    parser.add_argument("--adapter", required=True, help="folder of the adapter to start from")
    parser.add_argument("--data", required=True, help="safetensors file: `ids` and `labels`, i64 [steps, batch, seq]")
    parser.add_argument("--out", required=True, help="folder for the trained adapter")
    parser.add_argument("--lr", type=float, default=ADAMW["lr"], help="learning rate (default %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=ADAMW["weight_decay"], help="default %(default)s")
    args = parser.parse_args()
    data = load_file(args.data)
    model = load_adapter(load(args.model), args.adapter, trainable=True)
    adamw = ADAMW | {"lr": args.lr, "weight_decay": args.weight_decay}
    for step, (loss, norm) in enumerate(train(model, data["ids"], data["labels"], adamw), start=1):
        print(json.dumps({"step": step, "loss": loss, "grad_norm": norm}), flush=True)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
