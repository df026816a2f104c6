"""What a machine can do at most, measured: matrix products, convolutions, copies.

An action is a callable whose every call does a known amount of work, to be timed between the runs of the model.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends import openvino as openvino_backend

if TYPE_CHECKING:
    from collections.abc import Callable

_PRODUCT = 2048  # rows and columns: 16 MiB of float32 a matrix
_CHANNELS, _PICTURE, _KERNEL = 256, (8, 28, 28), (1, 3, 3)
_CONVOLUTIONS = 10  # of a graph
# Runs a call, for which a call takes as long as three clips of the model or longer: what comes before it in a round,
# and leaves its own data in the caches, then costs a peak no more than the model.
_PRODUCTS, _GRAPHS = 12, 4
_LARGE_COPY = 128 << 20  # bytes: several times any last-level cache that two cores share
_PASSES = 64  # over an array that stays in the cache
_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


@dataclass(frozen=True, slots=True)
class Peak:
    """Something to measure.

    Attributes:
        name: What it is.
        kind: "compute", "one thread" (the same on one thread), "memory" or "cache".
        precision: "fp32", "tf32", "fp16", "bf16" or "int8"; "" for a copy.
        amount: Floating-point operations, or bytes read and written, of one call.
        call: Does it.
        wait: Waits for the device, or None on a CPU.
    """

    name: str
    kind: str
    precision: str
    amount: float
    call: Callable[[], object]
    wait: Callable[[], object] | None = None

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return f"{self.name} {self.precision}".strip()


def cpu_peaks(threads: int, precisions: tuple[str, ...] = ("fp32",)) -> list[Peak]:
    """Return the matrix products and convolutions that this CPU's libraries can do, `threads` threads each.

    NumPy's own number of threads cannot be set once it runs: its product uses every core it was started with.
    """
    peaks = [numpy_product()] if "fp32" in precisions else []
    if openvino_backend.probe().usable:  # which loads the library with its usage reports switched off
        for precision in precisions:
            peaks.append(openvino_product(precision, threads))
            peaks.append(openvino_convolution(precision, threads))
        if threads > 1:
            one = openvino_convolution("fp32", 1)
            peaks.append(replace(one, name=f"{one.name}, 1 thread", kind="one thread"))
    return peaks


def numpy_product(size: int = _PRODUCT) -> Peak:
    """Return NumPy's float32 matrix product, by the BLAS that NumPy brings."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((size, size), np.float32) for _ in range(2))
    out = np.empty_like(a)
    call = _repeated(partial(np.matmul, a, b, out=out), _PRODUCTS)
    return Peak("NumPy matrix product", "compute", "fp32", _PRODUCTS * 2.0 * size**3, call)


def openvino_product(precision: str, threads: int, size: int = _PRODUCT) -> Peak:
    """Return a matrix product with constant weights in OpenVINO."""
    operators = import_module("openvino.opset13")
    rng = np.random.default_rng(0)
    x = operators.parameter([size, size], np.float32)
    weight = _quantised(operators, operators.constant(rng.random((size, size), np.float32)), precision)
    product = operators.matmul(_quantised(operators, x, precision), weight, transpose_a=False, transpose_b=True)
    run = _compiled(product, x, precision, threads, rng.random((size, size), np.float32))
    amount = _PRODUCTS * 2.0 * size**3
    return Peak("OpenVINO matrix product", "compute", precision, amount, _repeated(run, _PRODUCTS))


def openvino_convolution(precision: str, threads: int, channels: int = _CHANNELS) -> Peak:
    """Return 1x3x3 convolutions of the model's middle sizes in OpenVINO: few bytes for their arithmetic.

    They are one graph, each taking what the one before it gave, since the library changes the layout of what goes in
    and comes out: one alone is a tenth slower for that.
    """
    operators = import_module("openvino.opset13")
    rng = np.random.default_rng(0)
    x = found = operators.parameter([1, channels, *_PICTURE], np.float32)
    pads = [size // 2 for size in _KERNEL]
    mean = 2 / (channels * math.prod(_KERNEL))  # so that values stay near 1
    for _ in range(_CONVOLUTIONS):
        weight = operators.constant(mean * rng.random((channels, channels, *_KERNEL), np.float32))
        found = operators.convolution(
            _quantised(operators, found, precision),
            _quantised(operators, weight, precision),
            strides=[1, 1, 1],
            pads_begin=pads,
            pads_end=pads,
            dilations=[1, 1, 1],
        )
    run = _compiled(found, x, precision, threads, rng.random((1, channels, *_PICTURE), np.float32))
    inside = math.prod(_inside(size, taps) for size, taps in zip(_PICTURE, _KERNEL, strict=True))
    amount = 2.0 * _GRAPHS * _CONVOLUTIONS * channels**2 * inside
    return Peak(f"{_CONVOLUTIONS} OpenVINO convolutions 1x3x3", "compute", precision, amount, _repeated(run, _GRAPHS))


def _repeated(run: Callable[[], object], times: int) -> Callable[[], object]:
    def call() -> None:
        for _ in range(times):
            run()

    return call


def _inside(size: int, taps: int) -> int:
    """Return how many multiplications of one axis, padded to keep its size, are not by padding."""
    return size * taps - 2 * sum(range(taps // 2 + 1))


def _quantised(operators: Any, value: Any, precision: str) -> Any:  # noqa: ANN401 - the library is not typed
    """Put a quantisation to 8 bits after a value, which OpenVINO turns into an int8 operator."""
    if precision != "int8":
        return value
    bounds = [operators.constant(np.float32(bound)) for bound in (0.0, 1.0)]
    return operators.fake_quantize(value, *bounds, *bounds, 256)


def _compiled(
    result: Any,  # noqa: ANN401 - the library is not typed
    parameter: Any,  # noqa: ANN401
    precision: str,
    threads: int,
    value: np.ndarray[Any, np.dtype[np.float32]],
) -> Callable[[], object]:
    config = {
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    model = import_module("openvino").Model([import_module("openvino.opset13").result(result)], [parameter])
    request = openvino_core().compile_model(model, "CPU", config).create_infer_request()
    # Outputs are not copied, as that would be to memory which is mapped anew each time.
    return partial(request.infer, {0: value}, share_inputs=True, share_outputs=True)


@cache
def openvino_core() -> Any:  # noqa: ANN401 - the library is not typed
    """Return one OpenVINO Core for all measurements; it is never freed, as the backend's is not, and for its reason."""
    return import_module("openvino").Core()


def copies(threads: int, cache_bytes: int) -> list[Peak]:
    """Return a copy between arrays larger than the caches, and one between arrays that stay in the last-level cache.

    Each thread copies a part of its own. A byte counts when it is read and when it is written.
    """
    pool = ThreadPoolExecutor(threads)
    small = max(cache_bytes // 8 // threads, 1 << 16)  # source and destination of all threads: a quarter of the cache
    return [
        _copy(pool, threads, "memory", _LARGE_COPY // threads, 1),
        _copy(pool, threads, "cache", small, _PASSES),
    ]


def _copy(pool: ThreadPoolExecutor, threads: int, kind: str, size: int, passes: int) -> Peak:
    parts = [(np.zeros(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]

    def copy(pair: tuple[Any, Any]) -> None:
        for _ in range(passes):
            np.copyto(*pair)

    name = {"memory": "copy beyond the caches", "cache": "copy within the last-level cache"}[kind]
    return Peak(name, kind, "", 2.0 * size * threads * passes, lambda: list(pool.map(copy, parts)))


def last_level_cache_bytes() -> int:
    """Return the size of the largest cache of the first core, as the kernel says; 32 MiB where it does not."""
    sizes = [32 << 20]
    found = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(path.read_text("ascii").strip().removesuffix("K")) << 10 for path in found] or sizes
    return max(sizes)


def gpu_peaks() -> list[Peak]:
    """Return PyTorch's matrix products and a copy on the GPU; none without PyTorch or a GPU."""
    if find_spec("torch") is None:
        return []
    torch: Any = import_module("torch")
    if not torch.cuda.is_available():
        return []
    size = 4 * _PRODUCT
    peaks = []
    for precision, dtype in (("fp32", "float32"), ("tf32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")):
        a, b = (torch.rand(size, size, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
        call = partial(_gpu_product, torch, a, b, tf32=precision == "tf32")
        peaks.append(Peak("PyTorch matrix product", "compute", precision, 2.0 * size**3, call, torch.cuda.synchronize))
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2.0 * source.numel()
    return [
        *peaks,
        Peak("copy on the device", "memory", "", copied, partial(target.copy_, source), torch.cuda.synchronize),
    ]


def _gpu_product(torch: Any, a: Any, b: Any, *, tf32: bool) -> None:  # noqa: ANN401 - loaded by name
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.mm(a, b)


def blas_kernels() -> str | None:
    """Return for which CPU NumPy's OpenBLAS chose its kernels, or None where that cannot be asked."""
    if find_spec("threadpoolctl") is None:
        return None
    found = import_module("threadpoolctl").threadpool_info()
    names = [str(pool["architecture"]) for pool in found if pool.get("internal_api") == "openblas"]
    return names[0] if names else None


def cores() -> int:
    """Return the cores this process may run on."""
    return len(os.sched_getaffinity(0))
