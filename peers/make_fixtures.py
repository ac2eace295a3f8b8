"""Makes the fixtures that the Rust tests compare with, from the real transformers and PEFT. README.md has the layout."""

import argparse
import shutil
import zlib
from pathlib import Path

import torch

from adapters import CASES, make_adapter, make_training
from models import VARIANTS, make_model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder; each model variant replaces its sub-folder there")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other weights, ids and adapters (default 0)")
    args = parser.parse_args()

    def rng(what):
        """A generator for one part, so that a new part leaves the others as they were."""
        return torch.Generator().manual_seed(zlib.crc32(f"{args.seed}/{what}".encode()))

    for name in VARIANTS:
        out = args.out / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        ids = make_model(name, out, rng(name))
        for case in CASES.get(name, ()):
            make_adapter(name, case, out, ids, rng(f"{name}/{case}"))
        if name in CASES:
            make_training(name, out, rng(f"{name}/train"))


if __name__ == "__main__":
    main()
