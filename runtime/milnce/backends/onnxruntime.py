"""ONNX Runtime: on the CPU, and on CUDA where the onnxruntime-gpu package is installed."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Availability, Backend, CpuBackend, check_signature
from milnce.backends.cuda_libraries import load_cuda_libraries
from milnce.cuda import gpus
from milnce.errors import BackendError, CudaUnavailableError
from milnce.platforms import arm_features, install, is_arm, jetson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from milnce.manifest import GraphFile

NAME = "onnxruntime"

_CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Older releases have no CUDA kernel of ReduceMax in opset 20, which the text tower ends with: 1.26 registers it to 18.
_OLDEST_ON_CUDA = (1, 27)
_LOG_ERRORS_ONLY = 3
# GPUs that the published wheels for ARM have code for, by compute capability; there is no PTX to compile for others
# (cubins in libonnxruntime_providers_cuda.so of 1.31.1, manylinux_2_34_aarch64).
_ON_ARM = ((8, 9), (9, 0), (12, 0), (12, 1))
# With FP16 arithmetic (ARMv8.2) its convolutions add up in FP16: at full width centred cosine 0.991, spread error 0.128
# on an emulated Cortex-A76, where parity.FP16_GATE wants 0.998 and 0.08 (benchmarks/results/aarch64.md).
_FP16_ON_ARM = (
    "it adds up in FP16 on this ARM processor, which costs more accuracy than milnce allows; ask for precision='fp32', "
    "or for backend='openvino', which computes FP16 graphs in FP32"
)


def probe() -> Availability:
    """Say what ONNX Runtime can do here. Never raises."""
    packages = owning_packages()
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
        return Availability(NAME, None, problem=f"{problem}: {install(NAME)}")
    gpu_problem = _gpu_problem(version, getattr(onnxruntime, "cuda_version", None)) if CUDA in providers else None
    devices = ("cpu", "cuda") if CUDA in providers and gpu_problem is None else ("cpu",)
    problems = {"fp16": _FP16_ON_ARM} if "asimdhp" in arm_features() else {}
    precisions = tuple(name for name in ("fp32", "fp16") if "cuda" in devices or name not in problems)
    return Availability(NAME, version, devices, precisions, gpu_problem=gpu_problem, cpu_problems=problems)


def open_graph(model: bytes, graph: GraphFile, *, precision: str, threads: int | None) -> Backend:
    """Open a graph on the CPU.

    Args:
        model: The checked ONNX file.
        graph: Its entry in the manifest.
        precision: "fp32" or "fp16", the dtype of the graph. The CPU computes FP16 graphs in FP32 with rounded weights;
            where it would not, `probe` offers none.
        threads: Threads inside an operator; None lets the library use every core.

    Raises:
        BackendError: if the library refuses the graph.
    """
    return OnnxRuntimeBackend(model, graph, precision=precision, threads=threads)


class OnnxRuntimeBackend(CpuBackend):
    """One graph in an ONNX Runtime session on the CPU. Sessions may run from several threads at once."""

    name = NAME

    def __init__(self, model: bytes, graph: GraphFile, *, precision: str, threads: int | None = None) -> None:
        super().__init__(graph, precision=precision)
        import onnxruntime  # noqa: PLC0415 - backends load on use

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _LOG_ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(model, options, providers=[_CPU], enable_fallback=0)
        except Exception as error:
            raise BackendError(f"{NAME} cannot open {graph} on cpu: {error}") from error
        check_signature(NAME, graph, _names(session.get_inputs()), _names(session.get_outputs()))
        self._session = session
        self._output_names = [spec.name for spec in graph.outputs]

    def close(self) -> None:
        """Free the session."""
        super().close()
        self._session = None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        session = self._session
        if session is None:
            raise self._closed_in_use()
        return dict(zip(self._output_names, session.run(self._output_names, dict(feeds)), strict=True))


def _names(tensors: Any) -> list[str]:  # noqa: ANN401 - the library is not typed
    return [tensor.name for tensor in tensors]


def owning_packages() -> list[str]:
    """Return the installed packages that own the module onnxruntime which is imported.

    Another one in a folder that comes later on Python's path is shadowed, and does no harm.
    """
    try:
        module = find_spec(NAME)
    except ValueError:  # a module was put in its place by hand
        return []
    if module is None or module.origin is None:
        return []
    home = Path(module.origin).resolve().parent
    return [
        package
        for package in (NAME, "onnxruntime-gpu")
        if any(home / "__init__.py" in _modules(found) for found in metadata.distributions(name=package))
    ]


def _modules(distribution: metadata.Distribution) -> set[Path]:
    """Return where a distribution's onnxruntime/__init__.py lies, if it has one."""
    files = [file for file in distribution.files or [] if file.parts == (NAME, "__init__.py")]
    return {Path(str(distribution.locate_file(file))).resolve() for file in files}


def _is_published() -> bool:
    """Whether onnxruntime-gpu is a wheel of the package index, and none that somebody built for this GPU."""
    try:
        tags = metadata.distribution("onnxruntime-gpu").read_text("WHEEL")
    except metadata.PackageNotFoundError:
        return False
    return "manylinux" in (tags or "")


def _gpu_problem(version: str, cuda_version: str | None) -> str | None:
    """Return why the CUDA provider, which was built in, cannot run here, or None."""
    try:
        found = gpus()
    except CudaUnavailableError as error:
        return str(error)
    # A Jetson's own builds are old, and their libraries JetPack's: what pip would bring in their place does not run.
    instead = f"run plans of TensorRT: {install('tensorrt')}"
    if is_arm() and _is_published() and not any(gpu.compute_capability in _ON_ARM for gpu in found):
        held = ", ".join(f"{major}.{minor}" for major, minor in _ON_ARM)
        capability = ".".join(map(str, found[0].compute_capability))
        here = f"{found[0].name} ({capability})"
        return f"its wheels for ARM have kernels for compute capability {held}, not for {here}; {instead}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_ON_CUDA:
        oldest = ".".join(map(str, _OLDEST_ON_CUDA))
        newer = f'pip install "onnxruntime-gpu>={oldest}", which needs Python 3.11 or newer'
        return f"version {version} lacks kernels for these graphs: {newer if jetson() is None else instead}"
    missing = load_cuda_libraries(cuda_version)
    if missing:
        cure = 'pip install "onnxruntime-gpu[cuda,cudnn]"' if jetson() is None else instead
        return f"it was built for CUDA {cuda_version}, and {', '.join(missing)} cannot be loaded: {cure}"
    return None


def cuda_cure() -> str:
    """Return what brings an ONNX Runtime with CUDA in the place of one without, or why there is none here."""
    return install("cuda") if jetson() else f"pip uninstall -y onnxruntime && {install('cuda')}"
