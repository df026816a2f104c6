"""Triton model repositories: what is in them, held against Triton's own protobuf and rules, and what is refused."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny_bundle import write_tiny_bundle
from helpers.triton_proto import ParseError, check_config, model_config_class, parse_config
from milnce.bundle import Bundle
from milnce.errors import BundleError, PlanError
from milnce.plans import Plan, PlanProfile, write_plan
from milnce.specs import Dimension
from milnce_convert.plan_profiles import PlanSizes, make_profiles, parse_spans
from milnce_convert.triton import TritonModel, write_triton_repository
from milnce_convert.triton_config import Name, batch_sizes, onnx_config, to_pbtxt
from milnce_convert.triton_readme import covering_batches, readme

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BUCKETS = (1, 2, 4)
NAMES = ("milnce_video", "milnce_text")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("triton") / "tiny"
    write_tiny_bundle(path)
    return Bundle.open(path)


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def fixed(*batches: int) -> tuple[PlanProfile, ...]:
    return tuple(PlanProfile({"video": ((batch, 4, 32, 32, 3),) * 3}) for batch in batches)


def spans(*ends: int) -> tuple[PlanProfile, ...]:
    """Return profiles that take every batch between one end and the next."""
    shapes = [tuple((batch, 4, 32, 32, 3) for batch in (low + 1, high, high)) for low, high in pairwise((0, *ends))]
    return tuple(PlanProfile({"video": (low, best, high)}) for low, best, high in shapes)


def add_plan(
    folder: Path,
    bundle: Bundle,
    *,
    module: str = "video",
    data: bytes = b"a plan",
    precision: str = "fp16",
    **changes: Any,  # noqa: ANN401 - fields of several types
) -> Plan:
    """Write a plan and its sidecar, as `milnce build` does; the plan itself is only bytes."""
    graph = bundle.graph(module, precision=precision)
    text = tuple(PlanProfile({"tokens": ((batch, 16),) * 3}) for batch in BUCKETS)
    values: dict[str, Any] = {
        "format_version": 1,
        "file": "",
        "sha256": "",
        "bytes": 0,
        "module": module,
        "input_form": graph.input_form,
        "precision": precision,
        "onnx_sha256": graph.sha256,
        "library": "tensorrt",
        "library_version": "11.4.0.106",
        "compute_capabilities": ("9.0",),
        "gpu": "NVIDIA H200",
        "driver": "13.0",
        "hardware_compatibility": "none",
        "version_compatible": False,
        "profiles": fixed(*BUCKETS) if module == "video" else text,
        "build_s": 60.0,
        "date": "2026-11-21T12:00:00+00:00",
    }
    return write_plan(folder, data, Plan(**{**values, **changes}))


def written(destination: Path, model: str) -> Any:  # noqa: ANN401 - a ModelConfig
    folder = destination / model
    config = parse_config((folder / "config.pbtxt").read_text(encoding="ascii"))
    check_config(config, folder)
    return config


def shape_of(tensors: Any) -> dict[str, tuple[int, list[int]]]:  # noqa: ANN401 - a list of ModelInput
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}


UINT8, INT32, INT64, FP32 = 2, 8, 9, 11  # DataType of model_config.proto


def test_both_towers_in_onnx_runtime(tiny: Bundle, tmp_path: Path) -> None:
    models = write_triton_repository(tiny, tmp_path / "repository")
    assert [str(model) for model in models] == [
        "milnce_video: video uint8 fp16 (video-uint8-fp16.onnx) on ONNX Runtime, batches up to 8",
        "milnce_text: text tokens fp16 (text-fp16.onnx) on ONNX Runtime, batches up to 64",
    ]
    video = written(tmp_path / "repository", "milnce_video")
    assert (video.backend, video.platform, video.max_batch_size) == ("onnxruntime", "", 8)
    assert shape_of(video.input) == {"video": (UINT8, [-1, -1, -1, 3])}
    assert shape_of(video.output) == {"video_embedding": (FP32, [8]), "mixed_5c": (FP32, [12])}
    assert video.HasField("dynamic_batching")
    assert list(video.dynamic_batching.preferred_batch_size) == []
    assert video.optimization.input_pinned_memory.enable
    assert video.optimization.output_pinned_memory.enable
    (sample,) = video.model_warmup
    assert list(sample.inputs["video"].dims) == [4, 32, 32, 3]  # as the bundle samples
    text = written(tmp_path / "repository", "milnce_text")
    assert shape_of(text.input) == {"tokens": (INT64, [-1])}
    assert shape_of(text.output) == {"text_embedding": (FP32, [8])}
    assert list(text.model_warmup[0].inputs["tokens"].dims) == [16]
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_the_files_are_the_bundles_own(tiny: Bundle, tmp_path: Path) -> None:
    write_triton_repository(tiny, tmp_path / "r", precision="fp32", input_form="float32")
    for module, name in (("video", "video-float32-fp32.onnx"), ("text", "text-fp32.onnx")):
        written(tmp_path / "r", f"milnce_{module}")
        assert (tmp_path / "r" / f"milnce_{module}" / "1" / "model.onnx").read_bytes() == (
            tiny.path / name
        ).read_bytes()
    vocabulary = tmp_path / "r" / "milnce_text" / "vocabulary.txt"
    assert vocabulary.read_bytes() == (tiny.path / "vocabulary.txt").read_bytes()
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "milnce_video",
        "milnce_text",
        "README.md",
        "milnce.json",
    }


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_the_graph_takes_and_gives_what_its_configuration_says(tiny: Bundle, tmp_path: Path, form: str) -> None:
    write_triton_repository(tiny, tmp_path / "r", input_form=form)
    types = {UINT8: np.uint8, INT64: np.int64, FP32: np.float32}
    for model in ("milnce_video", "milnce_text"):
        config = written(tmp_path / "r", model)
        session = onnxruntime.InferenceSession(tmp_path / "r" / model / "1" / config.default_model_filename)
        (sample,) = config.model_warmup
        feeds = {
            name: np.zeros([config.max_batch_size, *value.dims], types[value.data_type])
            for name, value in sample.inputs.items()
        }
        names = [tensor.name for tensor in config.output]
        for tensor, value in zip(config.output, session.run(names, feeds), strict=True):
            assert value.dtype == types[tensor.data_type]
            assert list(value.shape) == [config.max_batch_size, *tensor.dims]


def test_fixed_sizes_stand_in_the_configuration(tiny: Bundle) -> None:
    graph = tiny.graph("video", precision="fp16")
    sizes = [Dimension("batch", 1, 4), *map(Dimension.fixed, (32, 224, 224, 3))]
    fixed_graph = replace(graph, inputs=(replace(graph.inputs[0], shape=tuple(sizes)),))
    config = onnx_config(fixed_graph, tiny.manifest, name="milnce_video", max_batch=16)
    assert config["input"][0]["dims"] == [32, 224, 224, 3]
    assert config["max_batch_size"] == 4  # as much as the graph takes
    assert config["model_warmup"][0]["inputs"][0]["value"]["dims"] == [32, 224, 224, 3]


def test_max_batch_is_taken(tiny: Bundle, tmp_path: Path) -> None:
    write_triton_repository(tiny, tmp_path / "r", max_batch=24)
    assert written(tmp_path / "r", "milnce_video").max_batch_size == 24
    assert written(tmp_path / "r", "milnce_text").max_batch_size == 24


@pytest.mark.parametrize(("precision", "options"), [("fp32", {"use_tf32": "0"}), ("fp16", {})])
def test_cudnn_searches_by_heuristic_and_fp32_is_not_tf32(
    tiny: Bundle, tmp_path: Path, precision: str, options: dict[str, str]
) -> None:
    write_triton_repository(tiny, tmp_path / "r", precision=precision)
    config = written(tmp_path / "r", "milnce_video")
    # The form that onnxruntime_backend 00fd3e8 obeys: see the comment in triton_config.py.
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert {one.name: dict(one.parameters) for one in accelerators} == ({"cuda": options} if options else {})


def test_clients_can_read_what_the_model_is(tiny: Bundle, tmp_path: Path) -> None:
    write_triton_repository(tiny, tmp_path / "r")
    parameters = written(tmp_path / "r", "milnce_text").parameters
    assert parameters["milnce_model_digest"].string_value == tiny.manifest.model_digest
    assert parameters["milnce_max_words"].string_value == "16"
    assert parameters["milnce_precision"].string_value == "fp16"
    assert parameters["milnce_sampling"].string_value == "milnce-native"


def test_plans_of_several_gpus_are_served_with_every_profile(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, data=b"for sm90")
    add_plan(plans, tiny, data=b"for sm89", compute_capabilities=("8.9",), gpu="NVIDIA L4")
    add_plan(plans, tiny, module="text", data=b"text")
    models = write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert str(models[0]) == (
        "milnce_video: video uint8 fp16 (video-uint8-fp16.onnx) on TensorRT 11.4.0.106 plans for compute capability "
        "8.9, 9.0, batches up to 4"
    )
    video = written(tmp_path / "r", "milnce_video")
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
    text = written(tmp_path / "r", "milnce_text")
    assert shape_of(text.input) == {"tokens": (INT64, [16])}
    assert dict(text.cc_model_filenames) == {"9.0": "model_sm90.plan"}


def test_plans_of_tensorrt_8_take_tokens_as_int32(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    for module in ("video", "text"):
        add_plan(plans, tiny, module=module, library_version="8.5.2", compute_capabilities=("8.7",), gpu="Orin")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    text = written(tmp_path / "r", "milnce_text")
    assert shape_of(text.input) == {"tokens": (INT32, [16])}
    assert text.model_warmup[0].inputs["tokens"].data_type == INT32
    assert shape_of(written(tmp_path / "r", "milnce_video").input) == {"video": (UINT8, [4, 32, 32, 3])}
    page = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    assert '"tokens", "INT32", tokenizer(["cutting a tomato"]).astype(np.int32)' in page


def test_a_tower_without_a_plan_runs_its_graph_and_says_why(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny)
    add_plan(plans, tiny, module="text", library="tensorrt_rtx", library_version="1.7.1.116")
    video, text = write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert (len(video.plans), text.plans) == (1, ())
    assert "Triton's TensorRT backend does not run plans of tensorrt_rtx" in text.passed_over[0]
    assert written(tmp_path / "r", "milnce_text").backend == "onnxruntime"
    record = json.loads((tmp_path / "r" / "milnce.json").read_bytes())
    assert record["kind"] == "triton"
    assert [model["name"] for model in record["models"]] == ["milnce_video", "milnce_text"]
    assert record["models"][0]["plans"][0]["sha256"] == video.plans[0].sha256
    assert record["models"][1]["passed_over"] == list(text.passed_over)


def test_a_plan_for_any_newer_gpu_is_the_default_file(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    add_plan(plans, tiny, data=b"any", hardware_compatibility="ampere-plus")
    add_plan(plans, tiny, data=b"own")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    video = written(tmp_path / "r", "milnce_video")
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
    add_plan(plans, tiny, data=b"new", profiles=fixed(1), date="2026-11-21T13:00:00+00:00")
    add_plan(plans, tiny, data=b"old", profiles=fixed(2), date="2026-11-21T12:00:00+00:00")
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    assert (tmp_path / "r" / "milnce_video" / "1" / "model_sm90.plan").read_bytes() == b"new"


def test_profiles_of_several_sizes_leave_the_axis_open(tiny: Bundle, tmp_path: Path, plans: Path) -> None:
    shapes = ((1, 4, 32, 32, 3), (2, 16, 32, 32, 3), (2, 32, 32, 32, 3))
    add_plan(plans, tiny, profiles=(PlanProfile({"video": shapes}),))
    write_triton_repository(tiny, tmp_path / "r", plans=plans)
    video = written(tmp_path / "r", "milnce_video")
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
    written(tmp_path / "r", "milnce_video")
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


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_the_client_in_the_readme_is_sound(tiny: Bundle, tmp_path: Path, form: str) -> None:
    write_triton_repository(tiny, tmp_path / "r", input_form=form)
    page = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    given_names = {call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)}
    assert {"milnce_video", "milnce_text", "milnce-native", "localhost:8000"} <= given_names
    assert ('"UINT8"' in program) is (form == "uint8")
    assert "frames=4, size=32" in program
    assert "--backend-config" not in page
    assert "docker run --rm [--gpus=all] -p8000" in page


def test_the_readme_says_what_a_clip_weighs(tiny: Bundle) -> None:
    manifest = replace(tiny.manifest, sampling={"preset": "sliding", "frames": 32, "size": 224})
    for form, text in (("uint8", "4.8 MB a clip"), ("float32", "19.3 MB a clip")):
        graph = tiny.graph("video", precision="fp32", input_form=form)
        towers = (graph, tiny.graph("text", precision="fp32"))
        models = [
            TritonModel(name, one, onnx_config(one, manifest, name=name))
            for one, name in zip(towers, NAMES, strict=True)
        ]
        assert text in readme(manifest, models)


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


def test_a_damaged_bundle_leaves_nothing(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    graph = tmp_path / "bundle" / "text-fp16.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"text-fp16\.onnx was changed"):
        write_triton_repository(Bundle.open(tmp_path / "bundle"), tmp_path / "deep" / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_missing_tower_is_named(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", modules=("video",), precisions=("fp32",), input_forms=("float32",))
    with pytest.raises(BundleError, match="has no graph text fp32"):
        write_triton_repository(Bundle.open(tmp_path / "bundle"), tmp_path / "r")


@given(st.text(max_size=40), st.integers(-(2**31), 2**31 - 1), st.booleans())
def test_any_text_survives_the_text_format(text: str, number: int, flag: bool) -> None:
    fields = {
        "name": text.encode("utf-8", "replace").decode(),
        "max_batch_size": number,
        "instance_group": [{"passive": flag, "profile": [text.encode("utf-8", "replace").decode()]}],
        "version_policy": {"all": {}},
        "input": [{"data_type": Name("TYPE_UINT8"), "dims": [number]}],
    }
    config = parse_config(to_pbtxt(fields))
    assert (config.name, config.max_batch_size) == (fields["name"], number)
    assert (config.instance_group[0].passive, list(config.instance_group[0].profile)) == (flag, [fields["name"]])
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert (config.input[0].data_type, list(config.input[0].dims)) == (UINT8, [number])


@pytest.mark.parametrize("text", ['nme: "x"', "max_batch_size: yes", "instance_group [{ kind: KIND_TPU }]"])
def test_the_checker_refuses_what_triton_does_not_know(text: str) -> None:
    model_config_class()
    with pytest.raises(ParseError):
        parse_config(text)
