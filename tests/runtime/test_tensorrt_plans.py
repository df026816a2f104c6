"""Plans that are not what they should be, and the libraries that run them: refused before anything goes wrong."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from helpers import fake_tensorrt
from helpers.fake_plans import fixed
from helpers.fake_tensorrt import make_fake_plan
from helpers.plan_machine import PlanMachine
from helpers.tiny_bundle import TinyWeights, projection_graph, text_graph, tiny_clips, video_graph
from milnce.backends import CudaOptions
from milnce.errors import BackendError, CudaUnavailableError, DeviceMemoryError, PlanError
from milnce.plans import PlanProfile, write_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers.fake_tensorrt import Flavour
    from helpers.tiny_bundle import Tiny

FLAVOURS: tuple[Flavour, ...] = ("8.5", "10", "rtx")
on_any_library = pytest.mark.parametrize("machine", FLAVOURS, indirect=True)


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path
) -> Iterator[PlanMachine]:
    made = PlanMachine(monkeypatch, tiny, tmp_path / "plans", getattr(request, "param", "10"))
    yield made
    made.close()


def counted(monkeypatch: pytest.MonkeyPatch, machine: PlanMachine) -> list[bytes]:
    """Return a list that gets the bytes of every plan that is deserialised."""
    seen: list[bytes] = []
    original = machine.trt.Runtime.deserialize_cuda_engine

    def deserialise(self: Any, data: bytes) -> Any:  # noqa: ANN401 - the library is not typed
        seen.append(data)
        return original(self, data)

    monkeypatch.setattr(machine.trt.Runtime, "deserialize_cuda_engine", deserialise)
    return seen


# Damage


def test_a_plan_cut_or_changed_anywhere_never_reaches_the_library(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch, machine)
    path = machine.plans / machine.write().file
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for cut in [*range(0, len(whole) - len(whole) // 14, len(whole) // 14), 1, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(
            PlanError, match=rf"was cut or changed: it has {cut} bytes, .* build it again: milnce build"
        ):
            machine.open()
    for bit in generator.choice(len(whole) * 8, 64, replace=False):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(PlanError, match=r"was changed or damaged: its sha256 is .* build it again: milnce build"):
            machine.open()
    path.write_bytes(whole + b"\0")
    with pytest.raises(PlanError, match="was cut or changed"):
        machine.open()
    assert seen == []
    assert machine.fake.leaks() == {}
    path.write_bytes(whole)
    machine.open().run({"video": tiny_clips(1)})
    assert seen == [whole]


@on_any_library
def test_a_plan_that_the_library_refuses_says_its_words_and_the_command(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole by its sidecar, and still nothing that this library loads.
    plan = machine.write()
    data = b"no plan at all" * 10
    written = write_plan(machine.plans, data, plan)
    text = "(MALFORMED_ENGINE)" if machine.flavour == "rtx" else r"cannot load the plan .*: IRuntime::deserial"
    with pytest.raises(PlanError, match=text):
        machine.open()
    assert machine.fake.leaks() == {}
    monkeypatch.setattr(machine.trt.Runtime, "deserialize_cuda_engine", lambda *_: None)
    if machine.flavour != "rtx":
        with pytest.raises(PlanError, match=rf"cannot load the plan {written.file}; build it again: milnce build BUN"):
            machine.open()


@on_any_library
def test_weights_that_do_not_fit_into_the_gpu_are_a_memory_error(machine: PlanMachine) -> None:
    machine.write()
    machine.fake.fail("cudaMalloc")
    with pytest.raises(DeviceMemoryError, match=r"cannot load the plan .* \(nvidia-smi lists them\)$"):
        machine.open()
    machine.open().run({"video": tiny_clips(1)})


@on_any_library
def test_a_library_that_does_not_start_is_said(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write()

    def refuse(*_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(machine.trt, "Runtime", refuse)
    with pytest.raises(BackendError, match=rf"{machine.trt.__name__} .* cannot start for the plan .*returned nullptr"):
        machine.open()


# What the plan is, and what its sidecar and the bundle say


def other_video(change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_from_string(video_graph(TinyWeights.seeded()))
    change(model)
    return bytes(model.SerializeToString())


def rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "mixed_5c":
                    names[index] = "features"
    model.graph.output[1].name = "features"


def wrong_plans() -> dict[str, tuple[bytes, str]]:
    seeded = TinyWeights.seeded
    return {
        "tower": (
            text_graph(seeded()),
            "its inputs are tokens, those of video uint8 fp32 .* are video; its outputs are text_embedding",
        ),
        "output name": (
            other_video(rename_output),
            "its outputs are features, video_embedding, those of .* are mixed_5c",
        ),
        "input form": (
            video_graph(seeded(), form="float32"),
            r"video is float32 in it, uint8 in the graph; video is \(-1, 3, -1, -1, -1\) in it",
        ),
        "width": (
            video_graph(seeded(embedding=9)),
            r"video_embedding is \(-1, 9\) in it, video_embedding float32 \(batch=1.., 8\) in the graph",
        ),
    }


@on_any_library
@pytest.mark.parametrize("kind", sorted(wrong_plans()))
def test_a_plan_of_another_graph_is_refused_by_what_it_is(machine: PlanMachine, kind: str) -> None:
    content, text = wrong_plans()[kind]
    shapes = {"tower": (16,), "input form": (3, 4, 16, 16)}.get(kind, (4, 16, 16, 3))
    profile = {"tokens" if kind == "tower" else "video": ((1, *shapes),) * 3}
    plan = machine.write()
    data = make_fake_plan(content, [profile] * 4, version=plan.library_version)
    write_plan(machine.plans, data, plan)
    with pytest.raises(PlanError, match=rf"the plan .* is not what its sidecar and the bundle say: {text}") as caught:
        machine.open()
    assert str(caught.value).endswith("; build it again: milnce build BUNDLE --force")
    assert machine.fake.leaks() == {}


@on_any_library
def test_a_sidecar_that_says_other_profiles_is_refused(machine: PlanMachine) -> None:
    graph = machine.bundle.graph("video")
    plan = machine.write(profiles=fixed(graph, (1, 4)))
    data = (machine.plans / plan.file).read_bytes()
    for said, text in (
        (fixed(graph, (1, 4, 8)), "it has 2 profiles, its sidecar 3"),
        (
            fixed(graph, (1, 8)),
            r"its profile 1 is video \(4, 4, 16, 16, 3\), that of its sidecar video \(8, 4, 16, 16, 3\)",
        ),
        (
            [fixed(graph, (1,))[0], PlanProfile({"video": ((1, 4, 16, 16, 3), (2, 4, 16, 16, 3), (8, 4, 16, 16, 3))})],
            r"that of its sidecar video \(1, 4, 16, 16, 3\) to \(2, 4, 16, 16, 3\) to \(8, 4, 16, 16, 3\)",
        ),
        ([PlanProfile({"video": ((4, 4),) * 3})] * 2, r"its profile 0 is video \(1, .* its sidecar video \(4, 4\)"),
    ):
        machine.plans = machine.plans.parent / str(len(text))
        write_plan(machine.plans, data, replace(plan, profiles=tuple(said)))
        with pytest.raises(PlanError, match=text):
            machine.open()


# The libraries


def test_the_lean_library_runs_version_compatible_plans_alone(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write()
    monkeypatch.delitem(__import__("sys").modules, "tensorrt")
    lean = fake_tensorrt.install(monkeypatch, machine.fake, "tensorrt_lean")
    with pytest.raises(PlanError, match=r"tensorrt_lean .* is installed, which runs version-compatible plans only"):
        machine.open()
    machine.write(version_compatible=True, version="10.13.3.9", sidecar={"date": "2026-02-01T00:00:00+00:00"})
    allowed: list[bool] = []
    original = lean.Runtime.deserialize_cuda_engine

    def deserialise(self: Any, data: bytes) -> Any:  # noqa: ANN401 - the library is not typed
        allowed.append(self.engine_host_code_allowed)
        return original(self, data)

    monkeypatch.setattr(lean.Runtime, "deserialize_cuda_engine", deserialise)
    backend = machine.open()
    clips = tiny_clips(3)
    expected = machine.tiny.weights.video(clips)[1]
    np.testing.assert_allclose(backend.run({"video": clips})["mixed_5c"], expected, rtol=0, atol=2e-5)
    assert allowed == [True]
    assert backend.plan.library_version == "10.13.3.9"


def test_host_code_is_allowed_for_no_other_plan(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    original = machine.trt.Runtime.deserialize_cuda_engine

    def deserialise(self: Any, data: bytes) -> Any:  # noqa: ANN401 - the library is not typed
        allowed.append(self.engine_host_code_allowed)
        return original(self, data)

    monkeypatch.setattr(machine.trt.Runtime, "deserialize_cuda_engine", deserialise)
    machine.made()
    assert allowed == [False]


@pytest.mark.parametrize("machine", ["rtx"], indirect=True)
def test_rtx_says_that_it_does_not_support_a_gpu(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch, machine)
    machine.write(compute_capabilities=("8.9", "12.0"))  # and a sidecar that says this one
    text = r"tensorrt_rtx 1.7.1.116 refuses the plan .* on this GPU \(UNSUPPORTED_CC\)"
    with pytest.raises(PlanError, match=text):
        machine.open()
    assert seen == []
    monkeypatch.setattr(machine.trt.Runtime, "get_engine_validity", lambda *_: (machine.trt.EngineValidity.INVALID, 0))
    with pytest.raises(PlanError, match=r"refuses the plan .* \(no reason given\)"):
        machine.open()
    many = 2 | 4 | 16
    monkeypatch.setattr(
        machine.trt.Runtime, "get_engine_validity", lambda *_: (machine.trt.EngineValidity.INVALID, many)
    )
    with pytest.raises(PlanError, match=r"\(UNSUPPORTED_CC, OLD_CUDA_DRIVER, INSUFFICIENT_GPU_MEMORY\)"):
        machine.open()


@pytest.mark.parametrize("machine", ["rtx"], indirect=True)
def test_rtx_looks_at_the_header_alone_and_runs_a_plan_that_is_not_optimal(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def validity(_: object, header: bytes) -> tuple[Any, int]:
        looked.append(len(header))
        return machine.trt.EngineValidity.SUBOPTIMAL, 0

    monkeypatch.setattr(machine.trt.Runtime, "get_engine_validity", validity)
    machine.made().run({"video": tiny_clips(1)})
    assert looked == [64]


@pytest.mark.parametrize("machine", ["rtx"], indirect=True)
@pytest.mark.parametrize("graphs", [True, False])
def test_rtx_captures_by_itself_and_makes_contexts_anew_when_memory_moves(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch, *, graphs: bool
) -> None:
    backend = machine.made(options=CudaOptions(slots=1, cuda_graphs=graphs))
    config: Any = backend._engine._config  # noqa: SLF001
    assert config.cuda_graph_strategy.name == ("WHOLE_GRAPH_CAPTURE" if graphs else "DISABLED")
    assert config.get_execution_context_allocation_strategy().name == "USER_MANAGED"
    made: list[int] = []
    original = backend._engine.context  # noqa: SLF001

    def context(profile: int, stream: int) -> object:
        made.append(profile)
        return original(profile, stream)

    monkeypatch.setattr(backend._engine, "context", context)  # noqa: SLF001
    for size in (1, 1, 2, 2, 1, 1, 2):
        clips = tiny_clips(size)
        expected = machine.tiny.weights.video(clips)[1]
        np.testing.assert_allclose(backend.run({"video": clips})["mixed_5c"], expected, rtol=0, atol=2e-5)
    # What it captured for one clip held the addresses of before two clips came.
    assert made == ([0, 1, 0] if graphs else [0, 1])


def test_a_gpu_that_is_not_there_is_said(machine: PlanMachine) -> None:
    machine.write()
    with pytest.raises(CudaUnavailableError, match="there is no GPU 7; this process sees 2"):
        machine.open(device="cuda:7")


def test_what_the_library_says_is_logged_and_not_printed(
    machine: PlanMachine, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "milnce.tensorrt"):
        backend = machine.made()
        for level in ("ERROR", "WARNING", "INFO"):
            backend._engine._logger.log(getattr(machine.trt.ILogger, level), "said by it")  # noqa: SLF001
    assert [record.levelname for record in caplog.records if record.message == "said by it"] == [
        "ERROR",
        "WARNING",
        "DEBUG",
    ]
    assert capsys.readouterr() == ("", "")


def test_the_projection_has_a_plan_like_others(machine: PlanMachine) -> None:
    content = projection_graph(TinyWeights.seeded())
    assert content == machine.bundle.read(machine.bundle.graph("projection"))
    machine.made("projection").run({"mixed_5c": np.ones((3, 12), np.float32)})
