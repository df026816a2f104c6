"""How long each node of a graph took, as OpenVINO and ONNX Runtime count it themselves."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peaks import openvino_core

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from layers import Layer

_TYPES = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoProfile:
    """A graph compiled as the backend of milnce compiles it, and with counters on. Call it to run one batch.

    Attributes:
        runs: Seconds of each node that took any, one mapping a run.
    """

    def __init__(self, model: bytes, clips: NDArray[np.uint8], *, precision: str, threads: int) -> None:
        core = openvino_core()
        graph = core.read_model(model)
        graph.reshape(list(clips.shape))
        config = {
            "INFERENCE_PRECISION_HINT": _TYPES[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "PERF_COUNT": True,
        }
        self._request = core.compile_model(graph, "CPU", config).create_infer_request()
        self._clips = clips
        self.runs: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Run one batch."""
        self._request.infer({0: self._clips}, share_inputs=True)
        times: dict[str, float] = defaultdict(float)
        for node in self._request.profiling_info:
            # What is fused away is listed with no time; what was split off, as "convolution/WithoutBiases".
            times[node.node_name.partition("/")[0]] += node.real_time.total_seconds()
        self.runs.append({name: seconds for name, seconds in times.items() if seconds > 0})

    def close(self) -> None:
        """Do nothing: the counters were read after each run."""


class OnnxRuntimeProfile:
    """A graph in an ONNX Runtime session that writes a profile. Call it to run one batch; close it to get the times.

    Attributes:
        runs: Seconds of each node, one mapping a run; empty until it is closed.
    """

    def __init__(
        self, model: bytes, clips: NDArray[np.uint8], *, threads: int, provider: str = "CPUExecutionProvider"
    ) -> None:
        onnxruntime: Any = import_module("onnxruntime")
        self._folder = tempfile.TemporaryDirectory()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name, "profile"))
        self._session = onnxruntime.InferenceSession(model, options, providers=[provider])
        self._feeds = {self._session.get_inputs()[0].name: clips}
        self.runs: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Run one batch."""
        self._session.run(None, self._feeds)

    def close(self) -> None:
        """Read the profile, and remove its file."""
        events = json.loads(Path(self._session.end_profiling()).read_text("utf-8"))
        self._folder.cleanup()
        self.runs = split_runs(events)


def split_runs(events: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the seconds of each node, one mapping a run, from the events of an ONNX Runtime profile.

    A run ends with the event "model_run", which is written after those of its nodes.
    """
    runs: list[dict[str, float]] = []
    current: dict[str, float] = defaultdict(float)
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            current[name.removesuffix("_kernel_time")] += event["dur"] / 1e6
        elif name == "model_run":
            runs.append(dict(current))
            current.clear()
    return runs


def profile_cuda(model: bytes, clips: NDArray[np.uint8], *, runs: int) -> list[dict[str, float]]:
    """Return the seconds of each node of a graph in ONNX Runtime on CUDA, one mapping a run.

    In a process of its own in which every launch of a kernel waits for it, so that a node's time is its kernels' and
    what launching them costs. Not yet run on hardware.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_wait_for_kernels) as pool:
        return pool.submit(_profile_cuda, model, clips, runs).result()


def _wait_for_kernels() -> None:
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"


def _profile_cuda(model: bytes, clips: NDArray[np.uint8], runs: int) -> list[dict[str, float]]:
    profile = OnnxRuntimeProfile(model, clips, threads=1, provider="CUDAExecutionProvider")
    for _ in range(runs + 1):
        profile()
    profile.close()
    return profile.runs[1:]


def seconds_of_layers(layers: Iterable[Layer], runs: list[dict[str, float]]) -> tuple[dict[str, float], float]:
    """Return the median seconds of each layer over the runs, and the median of what belongs to none of them.

    Args:
        layers: From `layers.count_layers`.
        runs: Seconds of each node, one mapping a run.
    """
    owner = {name: layer.name for layer in layers for name in (*layer.nodes, *layer.tensors)}
    times: dict[str, list[float]] = {name: [] for name in owner.values()}
    rest = []
    for run in runs:
        own: dict[str, float] = defaultdict(float)
        for node, seconds in run.items():
            own[owner.get(node, "")] += seconds
        rest.append(own[""])
        for name, values in times.items():
            values.append(own[name])
    return {name: statistics.median(values) for name, values in times.items()}, statistics.median(rest)
