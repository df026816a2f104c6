"""The part that asks TensorRT-RTX about this GPU. It is not made for all: a clear refusal is an answer, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import milnce
from gpucheck.bundles import COMMITTED, DEMO
from gpucheck.record import ABSENT, FAILED, MEASURED, PASSED
from milnce.bundle import Bundle
from milnce.cuda import Cuda
from milnce.errors import BackendUnavailableError, PlanError
from milnce.plan_folder import read_plan
from milnce.tensorrt_log import logger_of
from milnce_convert import plan as builder
from milnce_convert.parity import FP32_GATE, compare
from milnce_convert.plan_module import choose_toolkit
from milnce_convert.plan_profiles import PlanSizes, Span
from milnce_convert.reference import read

if TYPE_CHECKING:
    from pathlib import Path

    from gpucheck.record import Recorder
    from gpucheck.settings import Settings
    from milnce.plans import Plan

_LIBRARY = "tensorrt_rtx"
_BATCH = 4
_REFUSAL = "milnce runs the plan or refuses it"


def run(settings: Settings, record: Recorder) -> None:
    """Build a plan of the demo, ask the library whether it runs here, then ask milnce to run it."""
    if _LIBRARY not in settings.present:
        record.add("rtx", _LIBRARY, ABSENT, "tensorrt_rtx is not on this host")
        return
    folder = settings.plans / "rtx"
    plan: Plan | None = None
    with record.guarded("rtx", "build"):
        options = builder.PlanOptions(
            modules=("video",),
            precisions=("fp32",),
            sizes=PlanSizes(batch=(Span.fixed(_BATCH),)),
            settings=settings.builder,
        )
        toolkit = choose_toolkit(_LIBRARY)
        (built,) = builder.build_plans(Bundle.open(DEMO), folder, options, toolkit=toolkit)
        plan = built.plan
        targets = ", ".join(plan.compute_capabilities)
        record.add("rtx", "build", PASSED, f"a plan for compute capabilities {targets}", build_s=plan.build_s)
    if plan is None:
        return
    with record.guarded("rtx", _REFUSAL):
        _run(folder, record)
    # Last, as a library that is asked for what it does not support may end the process.
    with record.guarded("rtx", "the library's own answer"):
        record.add("rtx", "the library's own answer", MEASURED, answer(read_plan(folder, plan)))


def answer(data: bytes) -> str:
    """Return what the library says about a plan on this GPU, and whether it deserialises it."""
    import tensorrt_rtx as trt  # noqa: PLC0415 - where it is installed

    Cuda().activate()
    runtime: Any = trt.Runtime(logger_of(trt))
    validity, diagnostics = runtime.get_engine_validity(data[: runtime.engine_header_size])
    named = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(bit) & int(diagnostics)]
    deserialised = runtime.deserialize_cuda_engine(data) is not None
    said = f"diagnostics {int(diagnostics)} ({', '.join(named) or 'none named'})"
    engine = "gives an engine" if deserialised else "gives none"
    return f"get_engine_validity gives {validity.name}, {said}; deserialize_cuda_engine {engine}"


def _run(folder: Path, record: Recorder) -> None:
    """Run the plan through milnce: right numbers or a refusal in words pass, anything else does not."""
    reference = read(COMMITTED / "demo.npz")
    clips = reference.make_clips()[:_BATCH]
    try:
        with milnce.load(DEMO, backend="tensorrt", device="cuda", plans=folder, modules=("video",)) as model:
            found = model.encode_video(clips).embedding
    except (PlanError, BackendUnavailableError) as error:
        record.add("rtx", _REFUSAL, PASSED, f"refused in words: {error}")
        return
    agreement = compare(reference.outputs["video_embedding"][:_BATCH], found)
    failures = FP32_GATE.failures(agreement)
    detail = "; ".join(failures) or "it runs, and passes the parity gate"
    record.add("rtx", _REFUSAL, FAILED if failures else PASSED, detail, parity=agreement.to_json())
