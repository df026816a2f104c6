"""Sidecars of plans: the strict reader, also against made-up input, and the names of plans."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.sidecars import DATA, RTX_FIELDS, make_sidecar, names_in, video_profiles
from milnce.bundle import Bundle
from milnce.errors import PlanError
from milnce.plan_file import Plan, PlanProfile, decode, encode, plan_name, profile_sizes
from milnce.plan_folder import sidecars, write_plan

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.tiny_bundle import Tiny
    from milnce.manifest import GraphFile


@pytest.fixture(scope="session")
def graph(tiny: Tiny) -> GraphFile:
    """Return the FP16 video graph of the tiny bundle."""
    return Bundle.open(tiny.path).graph("video", precision="fp16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where this test's plans go."""
    return tmp_path / "plans"


def test_a_sidecar_survives_writing_and_reading(graph: GraphFile, folder: Path) -> None:
    written = write_plan(folder, DATA, make_sidecar(graph))
    assert decode(encode(written), source="x") == written
    assert sidecars(folder) == ([written], [])
    assert (written.bytes, written.file) == (len(DATA), plan_name(written))
    content = json.loads((folder / f"{written.file}.json").read_text())
    assert content["format"] == "milnce-plan"
    assert content["profiles"][1] == {"video": {key: [8, 4, 32, 32, 3] for key in ("min", "opt", "max")}}
    assert set(content) == {"format", *Plan.__slots__}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("module", "audio", "module and input_form are 'audio'/'uint8'; known are video/uint8"),
        ("input_form", "tokens", "module and input_form are 'video'/'tokens'"),
        ("precision", "int8", "'precision' must be one of fp32, fp16, not 'int8'"),
        ("library", "tensorrt_lean", "'library' must be one of tensorrt, tensorrt_rtx, not 'tensorrt_lean'"),
        ("library_version", "../../x", "'library_version' must be a version, not '../../x'"),
        ("file", "../x.plan", "'file' must be a plain file name inside the folder, not '../x.plan'"),
        ("sha256", "abc", "'sha256' must be 64 hex digits"),
        ("bytes", 0, "'bytes' must be from 1 to 17179869184, not 0"),
        ("bytes", 2**34 + 1, "'bytes' must be from 1 to 17179869184, not 17179869185"),
        ("bytes", 10**12, "'bytes' must be from 1 to 17179869184, not 1000000000000"),
        ("bytes", 2**62, "'bytes' must be from 1 to 17179869184"),
        ("bytes", True, "'bytes' must be of type int, not True"),
        ("compute_capabilities", [], "'compute_capabilities' must not be empty"),
        ("compute_capabilities", ["90"], "'90' is no compute capability, such as \"8.9\""),
        ("gpu", 5, "'gpu' must be a text or null, not 5"),
        ("gpu", "", "'gpu' must be a text or null, not ''"),
        ("hardware_compatibility", "all", "must be one of none, same-compute-capability, ampere-plus, not 'all'"),
        ("version_compatible", 1, "'version_compatible' must be true or false, not 1"),
        ("profiles", [], "'profiles' must not be empty"),
        ("profiles", [[1]], "profile 0 must be an object with an entry for each input, not [1]"),
        ("profiles", [{}], "profile 0 must be an object with an entry for each input, not {}"),
        ("profiles", [{"x": {"min": [1], "opt": [1], "max": [1]}}], "profile 0: the inputs are 'x', not video"),
        ("profiles", [{"video": {"min": [1], "opt": [1]}}], "profile 0, input 'video' lacks 'max'"),
        ("profiles", [{"video": {"min": [2], "opt": [1], "max": [3]}}], "with 1 <= min <= opt <= max"),
        ("profiles", [{"video": {"min": [0], "opt": [1], "max": [3]}}], "with 1 <= min <= opt <= max"),
        ("profiles", [{"video": {"min": [1], "opt": [4], "max": [3]}}], "with 1 <= min <= opt <= max"),
        ("profiles", [{"video": {"min": [1], "opt": [1, 1], "max": [1]}}], "must be shapes of one rank"),
        ("profiles", [{"video": {"min": [], "opt": [], "max": []}}], "must be shapes of one rank"),
        ("profiles", [{"video": {"min": [True], "opt": [1], "max": [1]}}], "must be shapes of one rank"),
        ("build_s", -1, "'build_s' must be a number of at least 0, not -1"),
        ("build_s", "1", "'build_s' must be a number of at least 0, not '1'"),
        ("build_s", True, "'build_s' must be a number of at least 0, not True"),
        ("date", "", "'date' must not be empty"),
        ("options", [], "'options' must be of type dict"),
        ("surplus", 1, "the sidecar has unknown fields: 'surplus'"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, said: str, graph: GraphFile) -> None:
    content = {**make_sidecar(graph).to_json(), field: value}
    with pytest.raises(PlanError, match=r"^s\.json is not a valid sidecar of a plan; build the plan again:") as caught:
        decode(json.dumps(content).encode(), source="s.json")
    assert said in str(caught.value)


def test_every_field_is_needed_and_all_problems_are_listed(graph: GraphFile) -> None:
    content = make_sidecar(graph).to_json()
    for field in set(content) - {"format", "format_version"}:
        less = copy.deepcopy(content)
        del less[field]
        with pytest.raises(PlanError, match=f"lacks '{field}'"):
            decode(json.dumps(less).encode(), source="s")
    with pytest.raises(PlanError) as caught:
        decode(json.dumps({**content, "bytes": 0, "date": "", "gpu": 1}).encode(), source="s")
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read as JSON"),
        (b"\xff{}", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"format": "milnce-plan", "format": "x"}', "'format' occurs twice"),
        (b'{"build_s": NaN}', "NaN is not JSON"),
        (b"[]", "format is None; 'milnce-plan' expected, so this is no sidecar of a plan"),
        (b'{"format": "milnce-bundle"}', "format is 'milnce-bundle'"),
        (b'{"format": "milnce-plan", "format_version": true}', "a whole number of at least 1 expected"),
        (
            b'{"format": "milnce-plan", "format_version": 2}',
            "is of format 2; this release reads up to 1. Upgrade",
        ),
    ],
)
def test_what_is_no_sidecar_is_said_so(data: bytes, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        decode(data, source="s.json")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_sidecar_with_anything_in_a_field_is_read_or_refused_by_name(data: st.DataObject) -> None:
    content = {
        **make_sidecar(_graph_stand_in()).to_json(),
        data.draw(st.sampled_from(Plan.__slots__)): data.draw(
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=6,
            )
        ),
    }
    try:
        plan = decode(json.dumps(content).encode(), source="s.json")
    except PlanError as error:
        assert str(error).startswith("s.json")  # noqa: PT017 - either outcome is right, and the words are looked at
    else:
        assert decode(encode(plan), source="s.json") == plan


def _graph_stand_in() -> GraphFile:
    from milnce.manifest import GraphFile  # noqa: PLC0415 - only for this

    return GraphFile("video", "uint8", "fp16", "v.onnx", "1" * 64, 1, 20, (), ())


def test_a_sidecar_that_the_reader_would_refuse_is_never_written(graph: GraphFile, folder: Path) -> None:
    with pytest.raises(PlanError, match="must not be empty"):
        write_plan(folder, DATA, make_sidecar(graph, date=""))
    with pytest.raises(PlanError, match="cannot be written as JSON"):
        write_plan(folder, DATA, make_sidecar(graph, options={"x": object()}))
    assert not folder.exists()


def test_names_say_library_version_target_precision_and_sizes(graph: GraphFile) -> None:
    names = {
        plan_name(make_sidecar(graph, **changes))
        for changes in (
            {},
            {"gpu": "NVIDIA H100 80GB HBM3"},
            {"version_compatible": True},
            {"precision": "fp32", "options": {"settings": {"tf32": True}}},
            {"hardware_compatibility": "same-compute-capability"},
            {"hardware_compatibility": "ampere-plus"},
            RTX_FIELDS,
            {"profiles": (PlanProfile({"video": ((1, 4, 32, 32, 3), (8, 4, 32, 32, 3), (16, 4, 64, 32, 3))}),)},
        )
    }
    assert names == {
        "tensorrt-11.1.0.106-sm90_NVIDIA_H200-fp16-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt-11.1.0.106-sm90_NVIDIA_H100_80GB_HBM3-fp16-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt-11.1.0.106-sm90_NVIDIA_H200-fp32_tf32-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt-11.1.0.106_vc-sm90_NVIDIA_H200-fp16-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt-11.1.0.106-sm90_all-fp16-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt-11.1.0.106-sm80plus-fp16-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt_rtx-1.7.1.116-sm80_86_89_120_121-fp16-video-uint8-1_8x4x32x32x3.plan",
        "tensorrt-11.1.0.106-sm90_NVIDIA_H200-fp16-video-uint8-1to16x4x32to64x32x3.plan",
    }
    assert profile_sizes(video_profiles(1, 2, 4)) == ["1_2_4x4x32x32x3"]


@pytest.mark.parametrize("options", [{}, {"settings": None}, {"settings": []}, {"settings": {"tf32": 1}}])
def test_options_are_free_form_and_only_the_builders_own_word_means_tf32(
    options: dict[str, object], graph: GraphFile
) -> None:
    assert not make_sidecar(graph, options=options).tf32


def test_names_hold_nothing_that_a_path_could_mean(graph: GraphFile, folder: Path) -> None:
    plan = make_sidecar(graph, gpu="../../etc/A GPU\n$(x)", library_version="1.0+local-x")
    written = write_plan(folder, DATA, plan)
    assert re.fullmatch(r"[A-Za-z0-9._-]+\.plan", written.file)
    assert names_in(folder) == [written.file, f"{written.file}.json"]
    many = make_sidecar(graph, profiles=video_profiles(*range(1, 200)))
    other = make_sidecar(graph, profiles=video_profiles(*range(1, 201)))
    assert len(plan_name(many)) < 200
    assert plan_name(many) != plan_name(other)
