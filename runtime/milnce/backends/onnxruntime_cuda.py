"""ONNX Runtime on CUDA: the ring's own buffers are bound, so nothing is copied but by the ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends.base import CudaOptions, check_signature
from milnce.backends.cuda_libraries import load_cuda_libraries
from milnce.backends.gpu import GpuBackend, open_gpu
from milnce.backends.layouts import Bucket, Layout
from milnce.backends.onnxruntime import cuda_cure
from milnce.errors import BackendError, BackendUnavailableError, DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from milnce.backends.slots import Slot
    from milnce.manifest import GraphFile

NAME = "onnxruntime"
PROVIDER = "CUDAExecutionProvider"

# ONNX Runtime keeps cuDNN's plan of a convolution for the last shape alone, and asks for all 113 again when the batch
# size changes: so batches come in few sizes, and callers do best with one. What a change costs, no GPU has said yet.
_VIDEO_BUCKETS = (1, 2, 4, 8, 16, 32)
_OTHER_BUCKETS = (1, 8, 32, 256)
# Of a declared limit, the part for the ring's inputs and outputs: a clip has 4.8 to 19.3 MB of them, and what the
# library keeps between them is many times that.
_RING_SHARE = 8
_LOG_ERRORS_ONLY = 3


@dataclass(slots=True)
class _Binding:
    """A session's binding to a slot's buffers. The session owns what is behind it."""

    binding: Any

    def close(self) -> None:
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()


class OnnxRuntimeCudaBackend(GpuBackend):
    """One graph in an ONNX Runtime session on a GPU.

    FP32 graphs are computed without TF32, which would round their products to 10 bits of mantissa.

    Attributes:
        largest_batch: Rows of the largest bucket.
    """

    name = NAME

    def __init__(
        self,
        model: bytes,
        graph: GraphFile,
        *,
        device: int,
        precision: str,
        options: CudaOptions | None = None,
        index_limit: int | None = None,
    ) -> None:
        options = options or CudaOptions()
        limit = options.device_limit_bytes
        ring_limit = None if limit is None else max(limit // _RING_SHARE, 1)
        cuda = open_gpu(device, device_limit_bytes=ring_limit, pinned_limit_bytes=options.pinned_limit_bytes)
        super().__init__(graph, precision=precision, cuda=cuda, options=options, index_limit=index_limit)
        self._session: Any = None
        self._buckets: dict[tuple[object, ...], Bucket] = {}
        batch = graph.inputs[0].shape[0]
        sizes = _VIDEO_BUCKETS if graph.module == "video" else _OTHER_BUCKETS
        self._sizes = [size for size in sizes if batch.accepts(size)] or [batch.minimum]
        self.largest_batch = self._sizes[-1]
        try:
            with cuda.active():
                self._session = self._open(model, None if limit is None or ring_limit is None else limit - ring_limit)
        except BaseException:
            self.close()
            raise

    def _free_library(self) -> None:
        self._session = None

    def _open(self, model: bytes, limit: int | None) -> Any:  # noqa: ANN401 - the library is not typed
        import onnxruntime  # noqa: PLC0415 - backends load on use

        available = onnxruntime.get_available_providers()
        if PROVIDER not in available:
            raise BackendUnavailableError(lacks_provider(available))
        # Without them the provider does not start, and all that is said then is that nodes would run on the CPU.
        missing = load_cuda_libraries(getattr(onnxruntime, "cuda_version", None))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _LOG_ERRORS_ONLY
        # A node that the GPU cannot run is an error and not a copy to the host in every batch.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=[(PROVIDER, self._provider_options(limit))], enable_fallback=0
            )
        except Exception as error:
            lacking = f" ({', '.join(missing)} cannot be loaded)" if missing else ""
            raise _failed(f"{NAME} cannot open {self.graph} on {self.device}{lacking}", error) from error
        # A provider whose libraries do not load is dropped from the list, and the session runs on the CPU.
        used = session.get_providers()
        if used[0] != PROVIDER:
            raise BackendUnavailableError(
                f"{NAME} was asked for {self.device} but took {', '.join(used)}: {PROVIDER} did not start. "
                "Check the driver and the CUDA and cuDNN libraries, or ask for device='cpu'"
            )
        session.disable_fallback()
        names = ([tensor.name for tensor in tensors] for tensors in (session.get_inputs(), session.get_outputs()))
        check_signature(NAME, self.graph, *names)
        self._run_options = onnxruntime.RunOptions()
        # The ring waits for an event where it needs the results.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return session

    def _provider_options(self, limit: int | None) -> dict[str, str]:
        options = {
            "device_id": str(self._cuda.info.index),
            "user_compute_stream": str(self._ring.compute.handle),
            # DEFAULT has meant cuDNN's slow fallback since ONNX Runtime 1.20.
            "cudnn_conv_algo_search": "EXHAUSTIVE" if self._options.exhaustive_search else "HEURISTIC",
        }
        if self.graph.precision == "fp32":
            # FP16 convolutions would lose the tensor cores by it: ONNX Runtime leaves out whatever uses them.
            options["use_tf32"] = "0"
        if limit is not None:
            options["gpu_mem_limit"] = str(limit)
            # The other strategy takes powers of two, and so up to twice what is needed.
            options["arena_extend_strategy"] = "kSameAsRequested"
        return options

    def _bucket(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> Bucket:
        size = next((size for size in self._sizes if size >= rows), self._sizes[-1])
        key = (size, *shapes.items())
        if key not in self._buckets:
            inputs = {spec.name: (size, *shapes[spec.name]) for spec in self.graph.inputs}
            outputs = {spec.name: (size, *(axis.minimum for axis in spec.shape[1:])) for spec in self.graph.outputs}
            dtypes = {spec.name: spec.dtype for spec in (*self.graph.inputs, *self.graph.outputs)}
            self._buckets[key] = Bucket(size, 0, Layout.of(inputs, dtypes), Layout.of(outputs, dtypes), 0)
        return self._buckets[key]

    def _enqueue(self, slot: Slot, bucket: Bucket) -> None:
        if bucket.key not in slot.kept:
            slot.kept[bucket.key] = _Binding(self._bind(slot, bucket))
        try:
            self._session.run_with_iobinding(slot.kept[bucket.key].binding, self._run_options)
        except Exception as error:
            raise _failed(f"{NAME} failed to run {self.graph} with {bucket.rows} rows", error) from error

    def _bind(self, slot: Slot, bucket: Bucket) -> Any:  # noqa: ANN401 - the library is not typed
        binding = self._session.io_binding()
        for bind, layout, buffer in (
            (binding.bind_input, bucket.inputs, slot.device_inputs),
            (binding.bind_output, bucket.outputs, slot.device_outputs),
        ):
            for name, shape in layout.shapes.items():
                dtype = np.dtype(layout.dtypes[name]).type
                address = buffer.pointer + layout.offsets[name]
                bind(name, "cuda", self._cuda.info.index, dtype, shape, address)
        return binding


def lacks_provider(available: list[str]) -> str:
    """Say that this ONNX Runtime was built without CUDA, and what to install."""
    return f"{NAME} cannot run on cuda: {PROVIDER} is not among {', '.join(available)}; install: {cuda_cure()}"


def _failed(what: str, error: Exception) -> BackendError:
    """Return the error to raise for an exception of the library, which has no type of its own for lack of memory."""
    text = str(error)
    if "allocate memory" in text or "out of memory" in text.lower():
        return DeviceMemoryError(f"{what}: the GPU's memory, or the declared limit, is exhausted: {text}")
    return BackendError(f"{what}: {text}")
