"""OpenVINO on the CPU: FP32 exactly; bfloat16, or quantised graphs in INT8, where the CPU can and the caller asks."""

from __future__ import annotations

import sys
from collections import OrderedDict
from importlib import metadata
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends.base import Availability, Backend, CpuBackend, check_signature
from milnce.backends.openvino_int8 import require_int8
from milnce.errors import BackendError, BackendUnavailableError
from milnce.platforms import install, is_arm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from milnce.manifest import GraphFile

NAME = "openvino"

# Left to itself OpenVINO may compute FP32 graphs in bfloat16, so the type is always said.
# What INT8 graphs leave in floating point is computed in FP32: bfloat16 there made nothing faster.
_COMPUTE_TYPES = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
# All 113 convolutions run in reference code there, and in FP32 ("ref_any_f32", 2026.4.1).
_ON_ARM = dict.fromkeys(
    ("bf16", "int8"),
    "on ARM it computes 3-D convolutions in FP32 alone: ask for precision='fp32', or use an x86-64 CPU",
)
_KEPT_SHAPES = 2
_CORE_LOCK = Lock()
_CORES: list[Any] = []


def probe() -> Availability:
    """Say what OpenVINO can do here. Never raises."""
    try:
        openvino = import_openvino()
    except (ImportError, OSError, AttributeError) as error:
        installed = _is_installed()
        problem = f"installed but does not load ({error}); reinstall it" if installed else "not installed"
        return Availability(NAME, None, problem=f"{problem}: {install(NAME)}")
    version = str(openvino.__version__).split("-", maxsplit=1)[0]
    try:
        core = _core()
        if "CPU" not in core.available_devices:
            return Availability(NAME, version, problem="it finds no CPU plugin; reinstall it: " + install(NAME))
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        return Availability(NAME, version, problem=f"it does not start ({error}); reinstall it: {install(NAME)}")
    if is_arm():
        return Availability(NAME, version, ("cpu",), ("fp32", "fp16"), cpu_problems=_ON_ARM)
    optional = [name.lower() for name in ("BF16", "INT8") if name in capabilities]
    return Availability(NAME, version, ("cpu",), ("fp32", "fp16", *optional))


def open_graph(model: bytes, graph: GraphFile, *, precision: str, threads: int | None) -> Backend:
    """Open a graph on the CPU.

    Args:
        model: The checked ONNX file.
        graph: Its entry in the manifest.
        precision: "fp32"; "fp16", the FP16 graph computed in FP32; "bf16", the FP32 graph computed in bfloat16; or
            "int8", the quantised graph, computed in INT8 where it is quantised.
        threads: Threads for one run; None lets the library use every core.

    Raises:
        BackendUnavailableError: if the precision cannot be had.
        BackendError: if the library refuses the graph.
    """
    return OpenVinoBackend(model, graph, precision=precision, threads=threads)


class OpenVinoBackend(CpuBackend):
    """One graph in OpenVINO.

    Video graphs are compiled for one clip of fixed size, since that was measured 5% to 7% faster than the dynamic
    graph (0.150 s against 0.160 s a clip: S3D-like FP32 graph, 32x224x224, 2 cores) and compiling takes 0.2 s. The
    last two sizes are kept. Other graphs are compiled once, with their axes dynamic.
    """

    name = NAME

    def __init__(self, model: bytes, graph: GraphFile, *, precision: str, threads: int | None = None) -> None:
        super().__init__(graph, precision=precision)
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _COMPUTE_TYPES[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._lock = Lock()
        self._requests: OrderedDict[tuple[tuple[int, ...], ...], tuple[Any, dict[str, Any]]] = OrderedDict()
        try:
            self._model = _core().read_model(bytes(model))
        except Exception as error:
            raise BackendError(f"{NAME} cannot open {graph}: {error}") from error
        check_signature(NAME, graph, _names(self._model.inputs), _names(self._model.outputs))
        if self.items_per_run is None:
            self._request(())

    def close(self) -> None:
        """Free the compiled graphs."""
        super().close()
        with self._lock:
            self._requests.clear()
            self._model = None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        shapes = () if self.items_per_run is None else tuple(feeds[spec.name].shape for spec in self.inputs)
        # One request and one lock: a run already uses all threads, and a second request would double the memory.
        with self._lock:
            if self._model is None:
                raise self._closed_in_use()
            request, inputs = self._request(shapes)
            # OpenVINO shares no memory that it may not write to, and does not hold what it shares: it must live here.
            arrays = {name: array if array.flags.writeable else array.copy() for name, array in feeds.items()}
            try:
                for name, array in arrays.items():
                    request.set_tensor(name, _tensor(array))
                request.infer()
                return {spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs}
            finally:
                # The caller's arrays, and the shared memory that they may lie in, are not the request's after this.
                for name, tensor in inputs.items():
                    request.set_tensor(name, tensor)

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Any, dict[str, Any]]:
        """Return the request compiled for the inputs' `shapes`, or dynamic ones if empty, and its own input tensors."""
        if shapes in self._requests:
            self._requests.move_to_end(shapes)
            return self._requests[shapes]
        if shapes:
            while len(self._requests) >= _KEPT_SHAPES:
                self._requests.popitem(last=False)
            self._model.reshape({spec.name: list(shape) for spec, shape in zip(self.inputs, shapes, strict=True)})
        try:
            compiled = _core().compile_model(self._model, "CPU", self._config)
            used = compiled.get_property("INFERENCE_PRECISION_HINT")
            request = compiled.create_infer_request()
        except Exception as error:
            raise BackendError(f"{NAME} cannot compile {self.graph}: {error}") from error
        asked = self._config["INFERENCE_PRECISION_HINT"]
        if used.to_string() != asked:
            raise BackendUnavailableError(
                f"{NAME} was asked to compute in {asked} but would use {used.to_string()}; "
                "this CPU cannot, so ask for precision='fp32'"
            )
        if self.graph.precision == "int8":
            require_int8(self._model, compiled, self.graph)
        inputs = {spec.name: request.get_tensor(spec.name) for spec in self.inputs}
        self._requests[shapes] = request, inputs
        return self._requests[shapes]


def _core() -> Any:  # noqa: ANN401 - the library is not typed
    """Return the one Core of this process, which is never freed.

    The CPU plugin gives the thread that loads it an alternate signal stack, and unmaps that when its Core goes. Cores
    that do not end in the reverse of the order in which they began leave the thread with a stack that is not there, and
    then the next signal, as of Ctrl-C, ends the process with SIGSEGV.
    """
    with _CORE_LOCK:
        if not _CORES:
            _CORES.append(import_openvino().Core())
        return _CORES[0]


def _tensor(array: NDArray[Any]) -> Any:  # noqa: ANN401 - the library is not typed
    return import_openvino().Tensor(array, shared_memory=True)


def import_openvino() -> Any:  # noqa: ANN401 - the library is not typed
    """Import openvino with its usage reports switched off.

    On import openvino writes an id to ~/intel and sends an event over the network, unasked, if it finds the package
    openvino_telemetry. It does neither if that import fails, so it is made to fail while openvino loads.
    """
    blocked = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # None is how an import is refused
    try:
        import openvino  # noqa: PLC0415 - backends load on use
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return openvino


def _is_installed() -> bool:
    try:
        metadata.distribution("openvino")
    except metadata.PackageNotFoundError:
        return False
    return True


def _names(ports: Any) -> list[str]:  # noqa: ANN401 - the library is not typed
    return [port.get_any_name() for port in ports]
