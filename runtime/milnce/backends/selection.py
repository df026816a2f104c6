"""Which backend a bundle gets on this machine, and why not a better one."""

from __future__ import annotations

import ctypes
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Availability, Backend, BackendChoice, CudaOptions
from milnce.errors import BackendError, BackendUnavailableError, BundleError, InputError
from milnce.platforms import install, is_arm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milnce.bundle import Bundle
    from milnce.manifest import GraphFile

BACKENDS = ("tensorrt", "openvino", "onnxruntime", "numpy")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

# In the order in which "auto" tries them, those of the CPU after these. A plan was built on purpose, so it comes first,
# in the precision it has.
_ON_GPU = (("tensorrt", "cuda"), ("onnxruntime", "cuda"))
# NumPy is not among them: it runs sentences and stored features, see choices.py.
_FILES = {"numpy": "numpy_text"}
_PLAN_PRECISIONS = ("fp16", "fp32")
_DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?")
NO_DRIVER = "there is no NVIDIA driver here (libcuda.so.1)"


def available() -> list[Availability]:
    """Say what each backend can do on this machine."""
    return [_module(name).probe() for name in BACKENDS]


def select(
    backend: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    *,
    bundle: Bundle | None = None,
    plans: Path | None = None,
    modules: Sequence[str] = ("video", "text"),
) -> BackendChoice:
    """Choose the backend.

    Args:
        backend: A name of `BACKENDS`, or "auto" for the first that can do what is asked.
        device: "cpu", "cuda", "cuda:N", or "auto" for a GPU where one can be used, else the CPU.
        precision: "fp32"; "fp16" for the bundle's FP16 graphs or plans; "bf16" for its FP32 graphs computed in
            bfloat16 where the CPU can; or "int8" for its quantised video graph, and its FP32 graphs of all else. None
            takes a plan's own (FP16 before FP32), and FP32 of the others.
        bundle: The bundle that is to run; without one no plan is looked for.
        plans: Folder with its plans; None for the bundle's own.
        modules: Modules that must run, and have plans where those are taken.

    Raises:
        InputError: if `device` or `precision` is no such name.
        BackendUnavailableError: if nothing here can do it; the message says what was asked, what is available and
            what to install.
    """
    if device != "auto" and _DEVICE.fullmatch(device) is None:
        raise InputError(f"device {device!r} given; devices are auto, {', '.join(DEVICES)}, cuda:1, ...")
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision {precision!r} given; precisions are {', '.join(PRECISIONS)}")
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailableError(f"backend {backend!r} asked for; backends are auto, {', '.join(BACKENDS)}")
    passed_over: list[tuple[str, str]] = []
    on_cpu, best = _on_cpu()
    for name, kind in (*_ON_GPU, *on_cpu, *([("numpy", "cpu")] if backend == "numpy" else [])):
        if backend not in ("auto", name) or not device.startswith(("auto", kind)):
            continue
        where = f"{name} on {kind}"
        gpu_problem = _gpu_problem(device_index(device)) if kind == "cuda" else None
        if gpu_problem is not None:
            passed_over.append((where, gpu_problem))
            continue
        found: Availability = _module(name).probe()
        wanted = kind if device == "auto" else device
        plans_folder, obstacle, taken = None, _obstacle(found, kind, precision or "fp32", modules), precision or "fp32"
        if obstacle is None and name == "tensorrt":
            plans_folder = plans or (None if bundle is None else bundle.path / "plans")
            taken, obstacle = _plan_precision(
                precision, bundle, plans_folder, modules, device_index(wanted), whole=backend == "auto"
            )
        if obstacle is None:
            merit = best if precision is None and (name, kind) == on_cpu[0] else None
            reason = _reason(found, backend, merit, passed_over)
            return BackendChoice(name, wanted, taken, reason, _sentences(passed_over), plans_folder)
        passed_over.append((where, obstacle))
    asked = f"backend {backend}, device {device}, precision {precision or 'auto'}"
    usable = [found for found in available() if found.usable and set(modules) <= set(found.modules)]
    others = "; ".join(map(str, usable)) or f"none; {install('onnxruntime')}"
    why = "; ".join(_sentences(passed_over)) or f"{backend} does not run on {device}"
    raise BackendUnavailableError(f"{asked} cannot be had here. {why}. Available: {others}")


def open_graph(
    choice: BackendChoice,
    model: bytes | memoryview | None,
    graph: GraphFile,
    *,
    threads: int | None = None,
    cuda: CudaOptions | None = None,
    index_limit: int | None = None,
    bundle: Bundle | None = None,
) -> Backend:
    """Open a graph in the chosen backend.

    Args:
        choice: What `select` gave.
        model: The ONNX file's content, checked against the manifest; see `takes_views`. None for a choice with
            `plans`, which takes the plan of that very file.
        graph: Its entry in the manifest.
        threads: CPU threads for one run; None for every core.
        cuda: How much of a GPU it may take.
        index_limit: Rows of the table that integer inputs point into: the vocabulary's words and the padding. A GPU
            gives numbers for ids outside it, so there they are refused; None where the table is not known, and only
            negative ids are refused.
        bundle: The bundle; of several plans the one for its own sizes is taken.

    Raises:
        BackendUnavailableError: if the device cannot be had.
        PlanError: if there is no valid plan of this graph.
        BackendError: if the backend refuses the graph.
    """
    if choice.plans is not None:
        from milnce.backends import tensorrt  # noqa: PLC0415 - backends load on use

        index = device_index(choice.device)
        return tensorrt.open_graph(
            graph, plans=choice.plans, device=index, options=cuda, index_limit=index_limit, bundle=bundle
        )
    if model is None:
        raise InputError(f"{choice.name} takes the ONNX file of {graph}; none given")
    if choice.device != "cpu":
        if choice.name != "onnxruntime":
            raise BackendUnavailableError(f"{choice.name} runs on cpu here, not on {choice.device}; use device='cpu'")
        from milnce.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend  # noqa: PLC0415 - backends load on use

        index = device_index(choice.device)
        return OnnxRuntimeCudaBackend(
            bytes(model), graph, device=index, precision=choice.precision, options=cuda, index_limit=index_limit
        )
    opened: Backend = _module(choice.name).open_graph(model, graph, precision=choice.precision, threads=threads)
    return opened


def expected_precision(device: str, precision: str | None) -> str | None:
    """Return the precision that `select` will take, if that can be told without a look for backends, else None.

    Args:
        device: As `select` takes it.
        precision: Likewise.
    """
    if precision is not None:
        return precision
    # A GPU may have plans in several.
    on_cpu = device == "cpu" or (device == "auto" and _driver_problem() is not None)
    return "fp32" if on_cpu else None


def takes_views(choice: BackendChoice) -> bool:
    """Whether the backend takes a graph as a `memoryview` too, where the others' libraries want bytes."""
    return choice.name == "numpy"


def device_index(device: str) -> int:
    """Return N of "cuda:N", 0 for "cuda"."""
    found = _DEVICE.fullmatch(device)
    return int(found[1] or 0) if found else 0


def _module(name: str) -> Any:  # noqa: ANN401 - a module with `probe` and, for a CPU, `open_graph`
    return import_module(f"milnce.backends.{_FILES.get(name, name)}")


def _driver_problem() -> str | None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return NO_DRIVER
    return None


def _gpu_problem(index: int) -> str | None:
    """Return why there is no GPU `index` to use, or None.

    Asked of the system first, and not of a library: on a machine without a GPU nothing of CUDA is even imported.
    """
    if (problem := _driver_problem()) is not None:
        return problem
    from milnce.cuda import gpus  # noqa: PLC0415 - only where there is a driver

    try:
        found = gpus()
    except BackendError as error:
        return str(error)
    if index < len(found):
        return None
    return f"there is no GPU {index} here, only {', '.join(f'cuda:{gpu.index} ({gpu.name})' for gpu in found)}"


def _plan_precision(
    precision: str | None,
    bundle: Bundle | None,
    folder: Path | None,
    modules: Sequence[str],
    device: int,
    *,
    whole: bool,
) -> tuple[str, str | None]:
    """Return the precision in which there are plans, or what is in the way.

    With `whole` a damaged plan is in the way too; without, opening it says so.
    """
    from milnce.backends import tensorrt  # noqa: PLC0415 - backends load on use

    if bundle is None or folder is None:
        return "", "plans belong to a bundle, and none was given"
    problems: dict[str, str] = {}
    missing: dict[str, str] = {}
    for wanted in (precision,) if precision else _PLAN_PRECISIONS:
        try:
            graphs = [
                bundle.graph(module, precision="fp32" if module == "projection" else wanted) for module in modules
            ]
        except BundleError as error:
            missing[wanted] = str(error)
            continue
        problem = tensorrt.plans_problem(folder, graphs, device, whole=whole, bundle=bundle)
        if problem is None:
            return wanted, None
        problems[wanted] = problem.replace("\n  - ", " - ")
    # About the plans that are there, or else about those that would be best to have.
    held = tensorrt.precisions_of(folder, modules)
    told = [problem for wanted, problem in problems.items() if wanted in held] or [*problems.values()][:1]
    return "", "; ".join(told or missing.values())


def _obstacle(found: Availability, device: str, precision: str, modules: Sequence[str]) -> str | None:
    """Return why `found` cannot do what is asked, with the cure, or None if it can."""
    if found.problem is not None:
        return found.problem
    if not set(modules) <= set(found.modules):
        runs, named = " and ".join(found.modules), ", ".join(map(repr, found.modules))
        return f"it runs {runs} alone; ask for modules=({named}), or for backend 'auto'"
    if device not in found.devices:
        cure = ""
        if device == "cuda" and found.gpu_problem is not None:
            return found.gpu_problem
        if device == "cuda" and found.name == "onnxruntime":
            cure = f"; install: {_module(found.name).cuda_cure()}"
        return f"it runs on {_listed(found.devices)} here, not on {device}{cure}"
    if precision not in found.precisions or (device == "cpu" and precision in found.cpu_problems):
        listed = f"it computes in {_listed(found.precisions)} here, not in {precision}"
        return found.cpu_problems.get(precision, listed)
    return None


def _on_cpu() -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the exact backends of a CPU, the better one first, and what speaks for it.

    On x86-64 the benchmarks do. On ARM OpenVINO runs every one of the 113 convolutions in its reference code (2026.4.1:
    "ref_any"; tests/platforms/aarch64.py shows it).
    """
    if is_arm():
        return (("onnxruntime", "cpu"), ("openvino", "cpu")), "the exact backend with kernels for ARM"
    return (("openvino", "cpu"), ("onnxruntime", "cpu")), "the fastest exact backend in the measurements on x86-64"


def _reason(found: Availability, backend: str, merit: str | None, passed_over: Sequence[tuple[str, str]]) -> str:
    """Say why it was taken; `merit` speaks for the one that a CPU tries first."""
    if backend != "auto":
        why = "asked for by name"
    elif found.name == "tensorrt":
        why = "its plans fit this GPU"
    else:
        why = merit or "the first that can do what was asked"
    reason = f"version {found.version}, {why}"
    if passed_over:
        reason += f"; passed over: {'; '.join(_sentences(passed_over))}"
    return reason


def _sentences(passed_over: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return one sentence a problem, naming all that have it."""
    by_problem: dict[str, list[str]] = {}
    for name, problem in passed_over:
        by_problem.setdefault(problem, []).append(name)
    return tuple(f"{', '.join(names)}: {problem}" for problem, names in by_problem.items())


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items) or "nothing"
