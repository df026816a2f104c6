"""TensorRT plans in a Triton repository: which are served and how, and which are refused."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from helpers.host_plans import BUCKETS, INT32, INT64, UINT8, add_plan, fixed, read_config, shape_of
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import PlanError
from milnce.plans import PlanProfile
from milnce_convert.plan_profiles import PlanSizes, make_profiles, parse_spans
from milnce_convert.triton import write_triton_repository
from milnce_convert.triton_config import batch_sizes
from milnce_convert.triton_readme import covering_batches

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("triton") / "tiny"
    write_tiny_bundle(path)
    return Bundle.open(path)


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def spans(*ends: int) -> tuple[PlanProfile, ...]:
    """Return profiles that take every batch between one end and the next."""
    shapes = [tuple((batch, 4, 32, 32, 3) for batch in (low + 1, high, high)) for low, high in pairwise((0, *ends))]
    return tuple(PlanProfile({"video": (low, best, high)}) for low, best, high in shapes)


def test_plans_of_several_gpus_are_served_with_every_profile(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, data=b"for sm90")
    add_plan(plans, tiny, data=b"for sm89", compute_capabilities=("8.9",), gpu="NVIDIA L4")
    add_plan(plans, tiny, module="text", data=b"text")
    models = write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert str(models[0]) == (
        "milnce_video: video uint8 fp16 (video-uint8-fp16.onnx) on TensorRT 11.4.0.106 plans for compute capability "
        "8.9, 9.0, batches up to 4"
    )
    video = read_config(tmp_path / "r", "milnce_video")
    assert (video.platform, video.max_batch_size) == ("tensorrt_plan", 4)
    assert dict(video.cc_model_filenames) == {"9.0": "model_sm90.plan", "8.9": "model_sm89.plan"}
    assert video.default_model_filename == ""
    assert shape_of(video.input) == {"video": (UINT8, [4, 32, 32, 3])}
    assert list(video.dynamic_batching.preferred_batch_size) == [1, 2, 4]
    assert video.dynamic_batching.max_queue_delay_microseconds == 0
    (group,) = video.instance_group
    assert (group.kind, list(group.profile)) == (1, ["0", "1", "2"])  # KIND_GPU
    assert [(one.batch_size, list(one.inputs["video"].dims)) for one in video.model_warmup] == [
        (batch, [4, 32, 32, 3]) for batch in BUCKETS
    ]
    files = {path.name: path.read_bytes() for path in (tmp_path / "r" / "milnce_video" / "1").iterdir()}
    assert files == {"model_sm90.plan": b"for sm90", "model_sm89.plan": b"for sm89"}
    text = read_config(tmp_path / "r", "milnce_text")
    assert shape_of(text.input) == {"tokens": (INT64, [16])}
    assert dict(text.cc_model_filenames) == {"9.0": "model_sm90.plan"}


def test_plans_of_tensorrt_8_take_tokens_as_int32(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    for module in ("video", "text"):
        add_plan(plans, tiny, module=module, library_version="8.5.2", compute_capabilities=("8.7",), gpu="Orin")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    text = read_config(tmp_path / "r", "milnce_text")
    assert shape_of(text.input) == {"tokens": (INT32, [16])}
    assert text.model_warmup[0].inputs["tokens"].data_type == INT32
    assert shape_of(read_config(tmp_path / "r", "milnce_video").input) == {"video": (UINT8, [4, 32, 32, 3])}
    page = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    assert '"tokens", "INT32", tokenizer(["cutting a tomato"]).astype(np.int32)' in page


def test_a_tower_without_a_plan_runs_its_graph_and_says_why(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny)
    add_plan(plans, tiny, module="text", library="tensorrt_rtx", library_version="1.7.1.116")
    video, text = write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert (len(video.plans), text.plans) == (1, ())
    assert "Triton's TensorRT backend does not run plans of tensorrt_rtx" in text.passed_over[0]
    assert read_config(tmp_path / "r", "milnce_text").backend == "onnxruntime"
    record = json.loads((tmp_path / "r" / "milnce.json").read_bytes())
    assert record["kind"] == "triton"
    assert [model["name"] for model in record["models"]] == ["milnce_video", "milnce_text"]
    assert record["models"][0]["plans"][0]["sha256"] == video.plans[0].sha256
    assert record["models"][1]["passed_over"] == list(text.passed_over)


def test_a_plan_for_any_newer_gpu_is_the_default_file(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, data=b"any", hardware_compatibility="ampere-plus")
    add_plan(plans, tiny, data=b"own")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    video = read_config(tmp_path / "r", "milnce_video")
    assert video.default_model_filename == "model_sm80plus.plan"
    assert dict(video.cc_model_filenames) == {"9.0": "model_sm90.plan"}
    assert (tmp_path / "r" / "milnce_video" / "1" / "model_sm80plus.plan").read_bytes() == b"any"


def test_of_two_plans_for_one_capability_the_portable_one_is_served(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, data=b"portable", hardware_compatibility="same-compute-capability")
    add_plan(plans, tiny, data=b"tuned", date="2026-11-21T13:00:00+00:00")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert (tmp_path / "r" / "milnce_video" / "1" / "model_sm90.plan").read_bytes() == b"portable"


def test_of_two_equal_plans_the_newer_one_is_served(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    # Named so that the older one comes later in the folder.
    add_plan(plans, tiny, data=b"new", profiles=fixed(1, 4), date="2026-11-21T13:00:00+00:00")
    add_plan(plans, tiny, data=b"old", profiles=fixed(2, 4), date="2026-11-21T12:00:00+00:00")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert (tmp_path / "r" / "milnce_video" / "1" / "model_sm90.plan").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("better", "worse", "why"),
    [
        ({"precision": "fp32"}, {"precision": "fp32", "options": {"settings": {"tf32": True}}}, "is exact and not in"),
        ({}, {"profiles": (PlanProfile({"video": ((64, 4, 48, 48, 3),) * 3}),)}, "takes the bundle's own sizes"),
        ({"hardware_compatibility": "same-compute-capability"}, {}, "runs on more GPU models"),
        ({"profiles": fixed(1, 8)}, {"profiles": fixed(1, 4)}, "takes larger batches"),
        ({"profiles": fixed(1, 8)}, {"profiles": fixed(2, 8), "date": "2025-01-01"}, "is newer"),
    ],
)
@pytest.mark.parametrize("newer", [True, False])
def test_what_is_better_is_served_and_what_lost_is_named(
    better: dict[str, Any], worse: dict[str, Any], why: str, newer: bool, tiny: Bundle, tmp_path: Path, plans: Path
) -> None:
    dates = ("2026-02-01", "2026-01-01") if newer or "date" in worse else ("2026-01-01", "2026-02-01")
    taken = add_plan(plans, tiny, data=b"better", **{"date": dates[0], **better})
    lost = add_plan(plans, tiny, data=b"worse", **{"date": dates[1], **worse})
    assert taken.file != lost.file
    models = write_triton_repository(tiny, tmp_path / "r", precision=taken.precision, plans=plans)
    assert (tmp_path / "r" / "milnce_video" / "1" / "model_sm90.plan").read_bytes() == b"better"
    (said,) = models[0].passed_over
    assert said.startswith(f"{lost.file}: {taken.file} is taken for the same GPUs, which {why}")


def test_profiles_of_several_sizes_leave_the_axis_open(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    shapes = ((1, 4, 32, 32, 3), (2, 16, 32, 32, 3), (2, 32, 32, 32, 3))
    add_plan(plans, tiny, profiles=(PlanProfile({"video": shapes}),))
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    video = read_config(tmp_path / "r", "milnce_video")
    assert shape_of(video.input) == {"video": (UINT8, [-1, 32, 32, 3])}
    (sample,) = video.model_warmup
    assert (sample.batch_size, list(sample.inputs["video"].dims)) == (2, [16, 32, 32, 3])


@pytest.mark.parametrize(
    ("profiles", "every", "note"),
    [(fixed(1, 2, 4), False, "the plans take exactly 1, 2, 4 items"), (spans(1, 2, 4), True, "joined as they come")],
)
def test_the_readme_says_which_batches_a_plan_takes(
    tiny: Bundle, tmp_path: Path, plans: Path, profiles: Sequence[PlanProfile], every: bool, note: str
) -> None:
    add_plan(plans, tiny, profiles=tuple(profiles))
    video, text = write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert (video.every_batch, text.every_batch) == (every, True)
    read_config(tmp_path / "r", "milnce_video")
    page = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    assert note in page
    assert ("must stay unset" in page) is not every
    assert "`milnce_video` run TensorRT plans, which are native code" in page
    assert "--gpus=all -p8000" in page
    assert "NVIDIA H200" in page
    assert "`milnce_text` run the ONNX graph" in page


@pytest.mark.parametrize(
    ("sizes", "text"),
    [((1, 2, 4, 8), "1,2,3:4:4,5:8:8"), ((1, 8, 32), "1,2:8:8,9:32:32"), ((4,), "1:4:4"), ((1,), "1")],
)
def test_the_batches_it_tells_to_build_cover_every_one(tiny: Bundle, sizes: tuple[int, ...], text: str) -> None:
    assert covering_batches(sizes) == text
    spans = parse_spans(text, "--batch")
    profiles = make_profiles(tiny.graph("video"), tiny.manifest, PlanSizes(batch=spans))
    assert batch_sizes(profiles) == list(range(1, sizes[-1] + 1))
    assert tuple(profile.shapes["video"][1][0] for profile in profiles) == sizes


def test_the_readme_names_the_command(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny)
    add_plan(plans, tiny, module="text", profiles=(PlanProfile({"tokens": ((8, 16),) * 3}),))
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    page = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    assert "milnce build BUNDLE --plans FOLDER --batch 1,2,3:4:4\n" in page
    assert "milnce build BUNDLE --plans FOLDER --text-batch 1:8:8\n" in page


def test_version_compatible_plans_need_an_option_of_the_server(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, version_compatible=True)
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    page = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    assert "--backend-config=tensorrt,version-compatible=true" in page
    assert "or a newer one, as they are version-compatible" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [{}, {"library_version": "10.13.0"}],
            "there are plans of TensorRT 10.13.0 (tensorrt-10.13.0-",
        ),
        ([{}, {"profiles": fixed(1), "compute_capabilities": ("8.9",)}], "have different profiles"),
        ([{}, {"gpu": "NVIDIA H100 PCIe"}], "Triton chooses by compute capability alone"),
        (
            [{}, {"module": "text", "library_version": "10.13.0"}],
            "there are plans of TensorRT 10.13.0 (tensorrt-10.13.0-",
        ),
    ],
)
def test_plans_that_contradict_each_other_are_refused(
    tiny: Bundle, tmp_path: Path, plans: Path, changes: list[dict[str, Any]], message: str
) -> None:
    for index, change in enumerate(changes):
        add_plan(plans, tiny, data=str(index).encode(), **change)
    with pytest.raises(PlanError, match=re.escape(message)):
        write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]


def test_without_any_plan_that_fits_it_says_why_each_was_passed_over(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, onnx_sha256="0" * 64)
    add_plan(plans, tiny, library="tensorrt_rtx", library_version="1.7.1.116", gpu=None)
    with pytest.raises(PlanError) as caught:
        write_triton_repository(tiny, tmp_path / "r", plans=plans, require_plans=True)
    assert "it was built from another video-uint8-fp16.onnx; build it again" in str(caught.value)
    assert "Triton's TensorRT backend does not run plans of tensorrt_rtx" in str(caught.value)
    assert "milnce build" in str(caught.value)


def test_plans_of_another_precision_are_left_alone(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, precision="fp16")
    video, _ = write_triton_repository(tiny, tmp_path / "r", precision="fp32", plans=plans)
    assert (video.plans, video.passed_over, video.graph.precision) == ((), (), "fp32")


def test_a_changed_plan_is_not_copied_and_nothing_is_left(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    plan = add_plan(plans, tiny, data=b"sound")
    (plans / plan.file).write_bytes(b"xound")
    with pytest.raises(PlanError, match="was changed or damaged"):
        write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]


def test_a_folder_of_plans_that_others_may_write_to_is_refused(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny)
    plans.chmod(0o777)
    with pytest.raises(PlanError, match="writable for others"):
        write_triton_repository(tiny, tmp_path / "r", plans=plans)
