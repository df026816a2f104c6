"""ONNX Runtime: on the CPU, and on CUDA where the onnxruntime-gpu package is installed."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Availability, Backend, check_signature
from milnce.errors import BackendError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from milnce.manifest import GraphFile

NAME = "onnxruntime"

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TF32 would round the FP32 graph's products to 10 bits of mantissa. HEURISTIC, since DEFAULT has meant cuDNN's
# slow fallback since 1.20 and EXHAUSTIVE tunes anew for every shape.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
_LOG_ERRORS_ONLY = 3
_INSTALL = 'pip install "milnce[onnxruntime]"'


def probe() -> Availability:
    """Say what ONNX Runtime can do here. Never raises."""
    packages = _packages()
    if len(packages) > 1:
        # They own the same module, so whichever was installed last has overwritten half of the other.
        return Availability(
            NAME,
            None,
            problem=f"{' and '.join(packages)} are installed together and overwrite each other; "
            f"cure: pip uninstall -y {' '.join(packages)}, then install only the one you need",
        )
    try:
        import onnxruntime  # noqa: PLC0415 - backends load on use

        version, providers = str(onnxruntime.__version__), onnxruntime.get_available_providers()
    except (ImportError, OSError, AttributeError) as error:  # AttributeError: an uninstall left an empty folder
        problem = f"installed but does not load ({error}); reinstall it" if packages else "not installed"
        return Availability(NAME, None, problem=f"{problem}: {_INSTALL}")
    devices = tuple(device for device, provider in _PROVIDERS.items() if provider in providers)
    return Availability(NAME, version, devices, ("fp32", "fp16"))


def open_graph(model: bytes, graph: GraphFile, *, device: str, precision: str, threads: int | None) -> Backend:
    """Open a graph.

    Args:
        model: The checked ONNX file.
        graph: Its entry in the manifest.
        device: "cpu" or "cuda".
        precision: "fp32" or "fp16", the dtype of the graph. The CPU computes FP16 graphs in FP32 with rounded weights.
        threads: Threads inside an operator; None lets the library use every core.

    Raises:
        BackendUnavailableError: if the device cannot be had.
        BackendError: if the library refuses the graph.
    """
    return OnnxRuntimeBackend(model, graph, device=device, precision=precision, threads=threads)


class OnnxRuntimeBackend(Backend):
    """One graph in an ONNX Runtime session. Sessions may run from several threads at once."""

    name = NAME

    def __init__(
        self, model: bytes, graph: GraphFile, *, device: str, precision: str, threads: int | None = None
    ) -> None:
        super().__init__(graph, device=device, precision=precision)
        import onnxruntime  # noqa: PLC0415 - backends load on use

        provider = _PROVIDERS[device]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise BackendUnavailableError(_lacks_provider(device, available))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _LOG_ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=[(provider, _PROVIDER_OPTIONS[device])], enable_fallback=0
            )
        except Exception as error:
            raise BackendError(f"{NAME} cannot open {graph} on {device}: {error}") from error
        # A provider whose libraries do not load is dropped from the list, and the session runs on the CPU.
        used = session.get_providers()
        if used[0] != provider:
            raise BackendUnavailableError(
                f"{NAME} was asked for {device} but took {', '.join(used)}: {provider} did not start. "
                "Check the driver and the CUDA and cuDNN libraries, or ask for device='cpu'"
            )
        session.disable_fallback()
        check_signature(NAME, graph, _names(session.get_inputs()), _names(session.get_outputs()))
        self._session = session
        self._output_names = [spec.name for spec in graph.outputs]

    def close(self) -> None:
        """Free the session."""
        super().close()
        self._session = None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        session = self._session
        if session is None:  # closed by another thread since `run` looked
            raise BackendError(f"{NAME}: {self.graph} was closed while in use; load the model again")
        return dict(zip(self._output_names, session.run(self._output_names, dict(feeds)), strict=True))


def _names(tensors: Any) -> list[str]:  # noqa: ANN401 - the library is not typed
    return [tensor.name for tensor in tensors]


def _packages() -> list[str]:
    """Return the installed packages that own the module onnxruntime."""
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        found.append(package)
    return found


def _lacks_provider(device: str, available: list[str]) -> str:
    cure = _INSTALL
    if device == "cuda":
        cure = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    return f"{NAME} cannot run on {device}: {_PROVIDERS[device]} is not among {', '.join(available)}; install: {cure}"
