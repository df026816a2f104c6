"""The TensorRT modules that build plans, and what each of them can do.

What `tensorrt` 8.5, 10 and 11 and `tensorrt_rtx` call differently is told apart here alone, by asking the module, and
never by its version.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from milnce.cuda import gpus
from milnce.errors import BackendUnavailableError, CudaUnavailableError, InputError, MissingDependencyError
from milnce.plans import HARDWARE_COMPATIBILITIES, Library, install_command, installed_libraries, library_problems
from milnce.tensorrt_log import logger_of

if TYPE_CHECKING:
    from milnce.cuda import GpuInfo

BUILDERS = ("tensorrt", "tensorrt_rtx")

# TensorRT-RTX builds for Turing when asked to alone; left to itself it builds for Ampere and newer.
_TURING = "7.5"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a module can do.

    Attributes:
        strongly_typed: Whether the graph's dtypes are the plan's. If not, they are asked for layer by layer.
        typing_flag: Whether that has to be asked for by a flag of the network.
        explicit_batch_flag: Whether a network with a batch axis has to be asked for by a flag.
        reads_opset_18: Whether the parser reads the axes of reductions as opset 18 and newer write them.
        int64: Whether there are int64 tensors; if not, ids are int32.
        progress: Whether a build reports its progress, and can be stopped.
        optimization_level: Whether the effort of a build can be chosen.
        hardware_compatibilities: Levels of portability between GPUs, "none" among them.
        version_compatible: Whether plans for newer versions and for tensorrt_lean can be built.
        timing_cache: Whether timings of kernels can be kept between builds.
        compute_capabilities: GPUs that plans can be built for without having one, such as ("8.0", "8.6"); empty where
            a plan is built on the GPU that runs it.
        default_targets: Those of them that are built for unasked.
        tactic_sources: Names of the sources of kernels that can be chosen.
        user_allocation: Whether a plan can promise to take no device memory but what it is given.
    """

    strongly_typed: bool
    typing_flag: bool
    explicit_batch_flag: bool
    reads_opset_18: bool
    int64: bool
    progress: bool
    optimization_level: bool
    hardware_compatibilities: tuple[str, ...]
    version_compatible: bool
    timing_cache: bool
    compute_capabilities: tuple[str, ...]
    default_targets: tuple[str, ...]
    tactic_sources: tuple[str, ...]
    user_allocation: bool

    @classmethod
    def of(cls, trt: Any) -> Capabilities:  # noqa: ANN401 - the library is not typed
        """Ask a module what it can do."""
        network_flags, builder_flags, config = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag, trt.IBuilderConfig
        typing_flag = hasattr(network_flags, "STRONGLY_TYPED")
        ahead_of_time = hasattr(trt, "ComputeCapability")
        targets = _targets(trt.ComputeCapability) if ahead_of_time else ()
        return cls(
            # A module without an FP16 flag has nothing but strong typing.
            strongly_typed=typing_flag or not hasattr(builder_flags, "FP16"),
            typing_flag=typing_flag,
            explicit_batch_flag=hasattr(network_flags, "EXPLICIT_BATCH"),
            # 10.0 is the first release with either (https://github.com/NVIDIA/TensorRT/issues/3467).
            reads_opset_18=hasattr(trt.DataType, "INT64"),
            int64=hasattr(trt.DataType, "INT64"),
            progress=hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor"),
            optimization_level=hasattr(config, "builder_optimization_level"),
            hardware_compatibilities=_hardware_compatibilities(trt, ahead_of_time=ahead_of_time),
            # TensorRT-RTX has the names of the next two; its cache does nothing, and its versions share no plans.
            version_compatible=hasattr(builder_flags, "VERSION_COMPATIBLE") and not ahead_of_time,
            timing_cache=hasattr(config, "create_timing_cache") and not ahead_of_time,
            compute_capabilities=targets,
            default_targets=tuple(target for target in targets if target != _TURING),
            tactic_sources=tuple(trt.TacticSource.__members__),
            user_allocation=hasattr(builder_flags, "REQUIRE_USER_ALLOCATION"),
        )


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A module that builds plans.

    Attributes:
        library: Its name and version.
        trt: The module.
        logger: The process' logger for it.
        capabilities: What it can do.
        gpu: The GPU that plans are built on, or None.
        reason: Why it was chosen.
    """

    library: Library
    trt: Any
    logger: Any
    capabilities: Capabilities
    gpu: GpuInfo | None
    reason: str

    def __str__(self) -> str:
        return f"{self.library}: {self.reason}"


def choose_toolkit(name: str | None = None, *, device: int = 0) -> Toolkit:
    """Choose what builds: `tensorrt` on a machine with a GPU; `tensorrt_rtx` where there is none, or for its GPUs.

    Args:
        name: "tensorrt" or "tensorrt_rtx", or None to choose.
        device: Index of the GPU.

    Raises:
        InputError: if `name` is no such module.
        MissingDependencyError: if it is not installed or does not load.
        CudaUnavailableError: if it needs a GPU and there is none, or none of that index.
        BackendUnavailableError: if nothing that is installed builds for this GPU.
    """
    if name is not None and name not in BUILDERS:
        cure = "; for that one build with tensorrt --version-compatible" if name == "tensorrt_lean" else ""
        raise InputError(f"library {name!r} given; those that build plans are {', '.join(BUILDERS)}{cure}")
    installed = {library.name: library for library in installed_libraries() if library.name in BUILDERS}
    gpu, problem = _gpu(device)
    if name is not None:
        if name not in installed:
            raise MissingDependencyError(_missing(name))
        return _named(installed[name], gpu, problem)
    if gpu is None:
        if "tensorrt_rtx" not in installed:
            cure = f"To build without one: {_missing('tensorrt_rtx')}"
            raise CudaUnavailableError(f"plans of tensorrt are built on their GPU: {problem}. {cure}")
        reason = f"it builds ahead of time, and no GPU is used here: {problem}"
        return _toolkit(installed["tensorrt_rtx"], None, reason)
    if "tensorrt" in installed:
        return _toolkit(installed["tensorrt"], gpu, f"it builds for {gpu.name}, on it")
    if "tensorrt_rtx" in installed:
        return _rtx(installed["tensorrt_rtx"], gpu)
    raise MissingDependencyError(f"{_missing('tensorrt')} (this machine has {gpu.name})")


def capability_of(gpu: GpuInfo) -> str:
    """Return a GPU's compute capability as text, such as "9.0"."""
    return ".".join(map(str, gpu.compute_capability))


def _named(library: Library, gpu: GpuInfo | None, problem: str) -> Toolkit:
    toolkit = _toolkit(library, gpu, "asked for by name")
    if gpu is None and not toolkit.capabilities.compute_capabilities:
        raise CudaUnavailableError(f"plans of {library.name} are built on their GPU: {problem}")
    return toolkit


def _rtx(library: Library, gpu: GpuInfo) -> Toolkit:
    toolkit = _toolkit(library, gpu, f"it builds for {gpu.name} and others, and tensorrt is not installed")
    if capability_of(gpu) not in toolkit.capabilities.default_targets:
        raise BackendUnavailableError(
            f"{library} does not run on {gpu.name} (compute capability {capability_of(gpu)}); it takes "
            f"{', '.join(toolkit.capabilities.compute_capabilities)}. {_missing('tensorrt')}; to build for other "
            "machines ask for it by name: --library tensorrt_rtx"
        )
    return toolkit


def _toolkit(library: Library, gpu: GpuInfo | None, reason: str) -> Toolkit:
    trt = import_module(library.name)
    return Toolkit(library, trt, logger_of(trt), Capabilities.of(trt), gpu, reason)


def _gpu(device: int) -> tuple[GpuInfo | None, str]:
    """Return the GPU, or why there is none.

    Raises:
        CudaUnavailableError: if there is none of that index, and it is not the first, which is the default.
    """
    try:
        found = gpus()
    except CudaUnavailableError as error:
        if device:
            raise CudaUnavailableError(f"GPU {device} asked for: {error}") from error
        return None, str(error)
    if device >= len(found):
        held = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in found)
        raise CudaUnavailableError(f"there is no GPU {device}; this process sees {held}")
    return found[device], ""


def _missing(name: str) -> str:
    for problem in library_problems():
        if problem.startswith(f"{name} "):
            return problem
    return f"{name} is not installed: {install_command(name)}"


def _targets(capabilities: Any) -> tuple[str, ...]:  # noqa: ANN401 - the library is not typed
    """Return "8.6" for the member SM86, "12.0" for SM120, in order."""
    numbers = [name[2:] for name in capabilities.__members__ if name.startswith("SM")]
    return tuple(sorted((f"{number[:-1]}.{number[-1]}" for number in numbers), key=float))


def _hardware_compatibilities(trt: Any, *, ahead_of_time: bool) -> tuple[str, ...]:  # noqa: ANN401
    # TensorRT-RTX takes the levels and they change nothing: its plans name the compute capabilities they are for.
    if ahead_of_time or not hasattr(trt, "HardwareCompatibilityLevel"):
        return ("none",)
    offered = {name.lower().replace("_", "-") for name in trt.HardwareCompatibilityLevel.__members__}
    return tuple(level for level in HARDWARE_COMPATIBILITIES if level in offered)
