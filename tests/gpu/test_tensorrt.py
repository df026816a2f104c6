"""Plans built and run here: right numbers, chosen when they should be, with and without graphs, lean and RTX too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import milnce
from helpers import gpu_models
from helpers.gpu_models import BUCKETS, build, builder_settings
from milnce.backends import CudaOptions
from milnce.errors import BackendUnavailableError, DeviceMemoryError, InputError
from milnce.plans import installed_libraries, sidecars
from milnce_convert.parity import FP32_GATE, compare, require
from milnce_convert.plan import PlanOptions, build_plans
from milnce_convert.plan_profiles import PlanSizes, Span

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.bundle import Bundle
    from milnce.cuda import Cuda
    from milnce_convert.reference import Reference

pytestmark = pytest.mark.needs("tensorrt")


def test_the_towers_give_the_references_numbers(
    bundle: Bundle, plans: Path, expected: Reference, clips: NDArray[np.uint8]
) -> None:
    with milnce.load(bundle.path, backend="tensorrt", plans=plans) as model:
        assert (model.backend.name, model.backend.device, model.backend.precision) == ("tensorrt", "cuda", "fp32")
        video = model.encode_video(clips)
        text = model.open("text").run({"tokens": expected.recipe.make_tokens()})["text_embedding"]
    for name, found in (
        ("video_embedding", video.embedding),
        ("mixed_5c", video.mixed_5c),
        ("text_embedding", text),
    ):
        require(compare(expected.outputs[name], found), FP32_GATE, name)


def test_a_plan_is_chosen_unasked_and_says_why(bundle: Bundle, plans: Path, tmp_path: Path) -> None:
    with milnce.load(bundle.path, plans=plans) as model:
        assert model.backend.name == "tensorrt"
        assert model.backend.device == "cuda"
    with milnce.load(bundle.path, plans=tmp_path / "none") as model:
        assert model.backend.name != "tensorrt"
        assert any("there are no plans at" in reason for reason in model.backend.passed_over)
    with pytest.raises(BackendUnavailableError, match="milnce build"):
        milnce.load(bundle.path, backend="tensorrt", plans=tmp_path / "none")


def test_the_sidecar_says_what_was_built_where(bundle: Bundle, plans: Path, cuda: Cuda) -> None:
    found, problems = sidecars(plans)
    assert problems == []
    assert {plan.module for plan in found} == {"video", "text"}
    for plan in found:
        graph = bundle.graph(plan.module, precision=plan.precision, input_form=plan.input_form)
        assert plan.onnx_sha256 == graph.sha256
        assert plan.gpu == cuda.info.name
        assert plan.compute_capabilities == (".".join(map(str, cuda.info.compute_capability)),)
        assert plan.bytes == (plans / plan.file).stat().st_size
        sizes = [profile.shapes[graph.inputs[0].name] for profile in plan.profiles]
        assert [high[0] for _, _, high in sizes] == list(BUCKETS)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_slots_and_graphs_do_not_change_the_numbers(
    bundle: Bundle, plans: Path, clips: NDArray[np.uint8], slots: int
) -> None:
    batches = [clips[first : first + size] for first, size in ((0, 8), (3, 1), (10, 8), (20, 4), (1, 8), (9, 3))]
    results: list[list[dict[str, NDArray[np.float32]]]] = []
    for graphs in (False, True):
        options = CudaOptions(slots=slots, cuda_graphs=graphs)
        with gpu_models.opened(bundle, "tensorrt", plans, options=options) as backend:
            for _ in range(3):
                results.append([backend.run({"video": batch}) for batch in batches])
                results.append(list(backend.stream({"video": batch} for batch in batches)))
    for found in results[1:]:
        for outputs, wanted in zip(found, results[0], strict=True):
            for name, values in wanted.items():
                np.testing.assert_array_equal(outputs[name], values)


def test_declared_device_memory_is_kept(bundle: Bundle, plans: Path, clips: NDArray[np.uint8]) -> None:
    with gpu_models.opened(bundle, "tensorrt", plans) as backend:
        backend.run({"video": clips})
        used = backend.device_bytes
    with gpu_models.opened(bundle, "tensorrt", plans, options=CudaOptions(device_limit_bytes=used)) as backend:
        assert len(backend.run({"video": clips})["video_embedding"]) == len(clips)
        assert backend.device_bytes <= used
    with gpu_models.opened(bundle, "tensorrt", plans, options=CudaOptions(device_limit_bytes=used - 1)) as backend:
        with pytest.raises(DeviceMemoryError, match=f"would pass the declared limit of {used - 1:,}"):
            backend.run({"video": clips})
        assert len(backend.run({"video": clips[:1]})["video_embedding"]) == 1


def test_a_size_without_a_profile_is_refused_with_those_there_are(
    bundle: Bundle, plans: Path, clips: NDArray[np.uint8]
) -> None:
    half = np.ascontiguousarray(clips[:1, :, ::2, ::2])
    with gpu_models.opened(bundle, "tensorrt", plans) as backend, pytest.raises(InputError, match="expected"):
        backend.run({"video": half})


def test_a_range_of_batches_and_sizes_runs(
    bundle: Bundle, tmp_path: Path, expected: Reference, clips: NDArray[np.uint8]
) -> None:
    frames, size = expected.recipe.frames, expected.recipe.size
    span = Span(size, size + 16, size)
    sizes = PlanSizes(batch=(Span(1, 8, 4),), frames=(Span.fixed(frames),), pictures=((span, span),))
    options = PlanOptions(modules=("video",), precisions=("fp32",), sizes=sizes, settings=builder_settings())
    build_plans(bundle, tmp_path / "plans", options)
    with gpu_models.opened(bundle, "tensorrt", tmp_path / "plans") as backend:
        for count in (2, 7, 8, 19):
            found = backend.run({"video": clips[:count]})["video_embedding"]
            require(compare(expected.outputs["video_embedding"][:count], found), FP32_GATE, f"{count} clips")
        larger = np.pad(clips[:2], ((0, 0), (0, 0), (0, 16), (0, 16), (0, 0)))
        assert np.isfinite(backend.run({"video": larger})["video_embedding"]).all()


def test_a_version_compatible_plan_runs_where_the_library_builds_one(
    bundle: Bundle, tmp_path: Path, expected: Reference, clips: NDArray[np.uint8]
) -> None:
    try:
        build(bundle, tmp_path / "plans", ("video",), version_compatible=True)
    except InputError as error:
        assert "builds none" in str(error)  # noqa: PT017 - TensorRT 8.5 has no such plans, and says so
        return
    with gpu_models.opened(bundle, "tensorrt", tmp_path / "plans") as backend:
        found = backend.run({"video": clips})["video_embedding"]
    require(compare(expected.outputs["video_embedding"], found), FP32_GATE, "version-compatible")


@pytest.mark.needs("tensorrt_lean")
def test_the_lean_runtime_runs_it_too(
    bundle: Bundle, tmp_path: Path, expected: Reference, clips: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle, tmp_path / "plans", ("video",), version_compatible=True)
    lean = tuple(library for library in installed_libraries() if library.name == "tensorrt_lean")
    assert lean
    monkeypatch.setattr("milnce.backends.tensorrt.installed_libraries", lambda: lean)
    with gpu_models.opened(bundle, "tensorrt", tmp_path / "plans") as backend:
        found = backend.run({"video": clips})["video_embedding"]
    require(compare(expected.outputs["video_embedding"], found), FP32_GATE, "lean")
