"""Products of quantized matrices by torch or by ggml, told what to do by lines of JSON on standard input.

A line of JSON when ready: {"name", "notes": [TEXT, ...]}, or {"name": null, "missing": WHY} before the end. Then one
answer for each line:

  {"do": "load", "rows", "cols", "batch", "kind", "repeat", "weights": FILE, "x": FILE}  -> {"variants": [NAME, ...]}
      weights [rows, cols], `repeat` times what is in the file, and activations [batch, cols]: int8 for torch; blocks of
      the kind (Q8_0, Q4_0) and f32 for ggml. Variants are what the library offers for the same product.
  {"do": "save", "variant", "out": FILE}      -> {}            the product [batch, rows]: int32 from torch, f32 from ggml
  {"do": "time", "variant", "times"}          -> {"seconds"}   of one product, of several after one that does not count
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["torch", "ggml"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--probe", help="multiply zeros once by this variant, and end")
    return parser.parse_args()


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Torch:
    """torch._int_mm, into memory that is there. A variant is how the weights lie."""

    def __init__(self, threads):
        import torch

        self.torch = torch
        self.notes = []
        torch.set_num_threads(threads)
        self.name = f"torch {torch.__version__}"

    def probe(self):
        pass

    def load(self, rows, cols, batch, kind, repeat, weights, x):
        weights = self.torch.from_numpy(np.tile(np.fromfile(weights, np.int8).reshape(-1, cols), (repeat, 1)))
        self.x = self.torch.from_numpy(np.fromfile(x, np.int8).reshape(batch, cols))
        self.weights = {"[n, k]": weights.t(), "[k, n]": weights.t().contiguous()}
        self.out = self.torch.empty(batch, rows, dtype=self.torch.int32)
        return list(self.weights)

    def run(self, variant):
        self.torch._int_mm(self.x, self.weights[variant], out=self.out)

    def result(self, variant):
        return self.out.numpy()


class Ggml:
    """ggml's mul_mat on its CPU backend. A variant is a buffer type: weights lie in each as its kernels want them."""

    TYPES = {"f32": 0, "Q4_0": 2, "Q8_0": 8}

    def __init__(self, threads):
        spec = importlib.util.find_spec("llama_cpp")  # not imported: it asks for packages that nobody needs here
        if spec is None:
            raise ModuleNotFoundError("llama-cpp-python is not installed: pip install -r peers/requirements-bench.txt")
        folder = Path(spec.origin).parent / "lib"
        self.base, self.cpu = (
            ctypes.CDLL(folder / f"lib{name}.so", mode=ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")
        )
        self.declare()
        self.silence = LOG(lambda level, text, data: None)
        self.base.ggml_log_set(self.silence, None)
        self.cpu.ggml_cpu_init()
        self.backend = self.cpu.ggml_backend_cpu_init()
        self.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
        params = ctypes.create_string_buffer(4096)
        self.base.ggml_threadpool_params_init(params, threads)
        self.cpu.ggml_backend_cpu_set_threadpool(self.backend, self.cpu.ggml_threadpool_new(params))
        self.name = f"ggml of llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
        self.products, self.buffers, self.notes, self.broken = {}, [], [], set()

    def probe(self):
        """Leaves out what ends the process: GCC 12 compiles ggml's AMX kernels wrongly unless told otherwise."""
        for kind in self.buffer_types()[1:]:
            name = self.base.ggml_backend_buft_name(kind).decode()
            command = [sys.executable, __file__, "ggml", "--threads", "2", "--probe", name]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            if done.returncode:
                self.broken.add(name)
                self.notes.append(f"this build's {name} kernels end their process ({done.returncode}): left out")

    def declare(self):
        """The types of what is called: pointers are `void *`, sizes 64 bits."""
        pointer, text, size, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
        functions = {
            self.cpu: {
                "ggml_cpu_init": (None, []),
                "ggml_backend_cpu_init": (pointer, []),
                "ggml_backend_cpu_reg": (pointer, []),
                "ggml_backend_cpu_set_n_threads": (None, [pointer, number]),
                "ggml_backend_cpu_set_threadpool": (None, [pointer, pointer]),
                "ggml_threadpool_new": (pointer, [pointer]),
            },
            self.base: {
                "ggml_log_set": (None, [LOG, pointer]),
                "ggml_threadpool_params_init": (None, [pointer, number]),
                "ggml_init": (pointer, [InitParams]),
                "ggml_free": (None, [pointer]),
                "ggml_new_tensor_2d": (pointer, [pointer, number, ctypes.c_int64, ctypes.c_int64]),
                "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
                "ggml_new_graph": (pointer, [pointer]),
                "ggml_build_forward_expand": (None, [pointer, pointer]),
                "ggml_nbytes": (size, [pointer]),
                "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
                "ggml_backend_alloc_ctx_tensors": (pointer, [pointer, pointer]),
                "ggml_backend_buffer_free": (None, [pointer]),
                "ggml_backend_buffer_set_usage": (None, [pointer, number]),
                "ggml_backend_tensor_set": (None, [pointer, pointer, size, size]),
                "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
                "ggml_backend_supports_op": (ctypes.c_bool, [pointer, pointer]),
                "ggml_backend_graph_compute": (number, [pointer, pointer]),
                "ggml_backend_buft_name": (text, [pointer]),
                "ggml_backend_reg_dev_get": (pointer, [pointer, size]),
                "ggml_backend_reg_get_proc_address": (pointer, [pointer, text]),
                "ggml_backend_dev_buffer_type": (pointer, [pointer]),
            },
        }
        for library, declarations in functions.items():
            for name, (result, arguments) in declarations.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments

    def buffer_types(self):
        """The plain one, and those that the backend offers beside it."""
        registry = self.cpu.ggml_backend_cpu_reg()
        device = self.base.ggml_backend_reg_dev_get(registry, 0)
        found = [self.base.ggml_backend_dev_buffer_type(device)]
        address = self.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if address:
            extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
            while extra and extra[len(found) - 1]:
                found.append(extra[len(found) - 1])
        return found

    def load(self, rows, cols, batch, kind, repeat, weights, x):
        for context, buffers in self.buffers:
            for buffer in buffers:
                self.base.ggml_backend_buffer_free(buffer)
            self.base.ggml_free(context)
        self.products, self.buffers, self.shape = {}, [], (batch, rows)
        weights = np.tile(np.fromfile(weights, np.uint8), repeat)
        x = np.fromfile(x, np.float32)
        for buffer_type in self.buffer_types():
            if self.base.ggml_backend_buft_name(buffer_type).decode() not in self.broken:
                self.add(buffer_type, self.TYPES[kind], rows, cols, batch, weights, x)
        return list(self.products)

    def add(self, buffer_type, kind, rows, cols, batch, weights, x):
        base = self.base
        held = base.ggml_init(InitParams(1 << 16, None, True))
        w = base.ggml_new_tensor_2d(held, kind, cols, rows)
        buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(held, buffer_type)
        base.ggml_backend_buffer_set_usage(buffer, 1)  # weights
        context = base.ggml_init(InitParams(1 << 20, None, True))
        input = base.ggml_new_tensor_2d(context, self.TYPES["f32"], cols, batch)
        product = base.ggml_mul_mat(context, w, input)
        others = base.ggml_backend_alloc_ctx_tensors(context, self.backend)
        self.buffers += [(held, [buffer]), (context, [others])]
        if not base.ggml_backend_supports_op(self.backend, product):
            return
        for tensor, data in ((w, weights), (input, x)):
            if base.ggml_nbytes(tensor) != data.nbytes:
                raise ValueError(f"{data.nbytes} bytes for a tensor of {base.ggml_nbytes(tensor)}")
            base.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, product)
        self.products[base.ggml_backend_buft_name(buffer_type).decode()] = graph, product

    def run(self, variant):
        if self.base.ggml_backend_graph_compute(self.backend, self.products[variant][0]) != 0:
            raise RuntimeError(f"ggml did not compute {variant}")

    def result(self, variant):
        out = np.empty(self.shape, np.float32)
        self.base.ggml_backend_tensor_get(self.products[variant][1], out.ctypes.data, 0, out.nbytes)
        return out


def answer(library, do, **request):
    if do == "load":
        return {"variants": library.load(**request)}
    variant = request["variant"]
    library.run(variant)
    if do == "save":
        library.result(variant).tofile(request["out"])
        return {}
    begin = time.perf_counter()
    for _ in range(request["times"]):
        library.run(variant)
    return {"seconds": (time.perf_counter() - begin) / request["times"]}


def multiply_zeros(library, variant):
    rows, cols, batch = 64, 256, 16
    with tempfile.TemporaryDirectory() as folder:
        weights, x = (os.path.join(folder, name) for name in ("weights", "x"))
        np.zeros(rows * cols // 32 * 34, np.uint8).tofile(weights)
        np.zeros(batch * cols, np.float32).tofile(x)
        # Not every variant has Q8_0.
        if variant in library.load(rows, cols, batch, "Q8_0", 1, weights, x):
            library.run(variant)


def main():
    args = parse_args()
    try:
        library = {"torch": Torch, "ggml": Ggml}[args.library](args.threads)
    except (ModuleNotFoundError, OSError) as error:
        print(json.dumps({"name": None, "missing": str(error)}), flush=True)
        return
    if args.probe:
        return multiply_zeros(library, args.probe)
    library.probe()
    print(json.dumps({"name": library.name, "notes": library.notes}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
