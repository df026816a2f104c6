"""A bundle gets one more precision, measured on what it was not calibrated on, or nothing is written."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import milnce
from helpers.quantizing import add_int8_by_hand, require_nncf, write_videos
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce.bundle import Bundle
from milnce.captions import CaptionColumns, read_captions
from milnce.errors import InputError, MissingDependencyError, OutputError, QuantizationError
from milnce_convert import quantize, quantize_nncf
from milnce_convert.parity import INT8_GATE
from milnce_convert.quantize import Quantized, QuantizeOptions, quantize_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTIONS = QuantizeOptions(clips=16, held_out=8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight videos and captions of them."""
    folder = write_videos(tmp_path_factory.mktemp("videos"))
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "caption"])
        table.writerows([f"{number}.mp4", text] for number, text in enumerate(["cut the tomato", "open door"] * 4))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def made(tiny: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Return the tiny bundle with an INT8 graph made by NNCF."""
    require_nncf()
    stages: list[str] = []
    options = QuantizeOptions(clips=16, held_out=8, captions=read_captions(videos / "captions.csv", CaptionColumns()))
    # The captions say nothing of the videos, and two clips that swap places are many points: only figures are wanted.
    options = QuantizeOptions(**{**vars(options), "largest_fall_points": 100.0})
    done = quantize_bundle(
        Bundle.open(tiny), tmp_path_factory.mktemp("made") / "int8", [videos], options, stages.append
    )
    assert [stage.split()[0] for stage in stages] == ["draw", "quantise", "compare", "search", "write"]
    return done


def test_the_bundle_has_all_it_had_and_one_graph_more(made: Quantized, tiny: Path) -> None:
    before, after = Bundle.open(tiny).manifest, made.bundle.manifest
    assert after.graphs[:-1] == before.graphs
    assert after.graphs[-1] == made.graph
    assert (made.graph.module, made.graph.input_form, made.graph.precision) == ("video", "uint8", "int8")
    assert made.graph.file == "video-uint8-int8.onnx"
    assert (after.name, after.model_digest, after.sampling) == (before.name, before.model_digest, before.sampling)
    assert after.vocabulary == before.vocabulary
    made.bundle.verify()
    assert sorted(path.name for path in made.bundle.path.parent.iterdir()) == ["int8"]


def test_the_graph_is_onnx_with_the_same_signature_and_8_bit_weights(made: Quantized, tiny: Path) -> None:
    plain = Bundle.open(tiny).graph("video", input_form="uint8")
    assert (made.graph.inputs, made.graph.outputs, made.graph.opset) == (plain.inputs, plain.outputs, plain.opset)
    model = onnx.load_from_string(made.bundle.read(made.graph))
    kinds = [node.op_type for node in model.graph.node]
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= set(kinds)
    assert model.opset_import[0].version == plain.opset
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 5]
    assert [tensor.data_type for tensor in weights] == [onnx.TensorProto.INT8]
    # What projects is left in FP32: its weights are there as they were.
    held = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert {array.dtype.name for array in held} == {"float32"}


def test_the_parity_record_has_the_figures_and_where_they_are_from(made: Quantized) -> None:
    parity = made.graph.parity
    assert (parity["reference"], parity["gate"]) == ("FP32 graph, OpenVINO, CPU", "int8")
    assert sorted(parity["outputs"]) == ["mixed_5c", "video_embedding"]
    for cases in parity["outputs"].values():
        ((case, figures),) = cases.items()
        assert case == "8 held-out clips of 4x32x32x3"
        assert figures["rows"] == 8
        assert INT8_GATE.centred_cosine < figures["centred_cosine"] < 1
        assert not figures["identical"]
    assert sorted(parity["retrieval"]) == [
        "FP32 clips find their INT8 ones",
        "INT8 clips find their FP32 ones",
        "captions find their clips",
        "clips find their captions",
    ]
    assert {recall.kind: recall.to_json() for recall in made.recalls} == parity["retrieval"]
    assert parity["retrieval"]["captions find their clips"]["queries"] == 3  # of the videos that were held out
    assert parity["retrieval"]["FP32 clips find their INT8 ones"]["queries"] == 8


def test_the_manifest_says_how_the_graph_was_made(made: Quantized, videos: Path) -> None:
    about = made.bundle.manifest.made
    assert about["tool"] == "tests"  # what was said of the bundle before
    quantized = about["quantized"]
    assert quantized["versions"]["nncf"] == version("nncf")
    assert quantized["method"]["activation_ranges"] == "min_max"
    assert quantized["calibration"]["clips"] == 16
    assert len(quantized["calibration"]["videos"]) == 5
    assert set(quantized["calibration"]["videos"]) <= {path.name for path in videos.iterdir()}
    assert quantized["held_out"] == {"clips": 8, "videos": 3}
    assert quantized["preset"]["digest"]
    assert quantized["captions"] == "captions.csv"


def test_the_new_bundle_runs_in_int8_near_fp32(made: Quantized) -> None:
    clips = tiny_clips(6, frames=4, size=32)
    with milnce.load(made.bundle.path, precision="int8") as model, milnce.load(made.bundle.path) as plain:
        found, expected = model.encode_video(clips).embedding, plain.encode_video(clips).embedding
    assert 0 < np.abs(found - expected).max() / np.abs(expected).max() < 0.1


def test_the_same_clips_give_the_same_graph(made: Quantized, tiny: Path, videos: Path, tmp_path: Path) -> None:
    again = quantize_bundle(Bundle.open(tiny), tmp_path / "again", [videos], OPTIONS)
    assert again.graph.sha256 == made.graph.sha256


def test_a_bundle_can_be_replaced_by_itself(tiny: Path, videos: Path, tmp_path: Path) -> None:
    require_nncf()
    folder = shutil.copytree(tiny, tmp_path / "b")
    with pytest.raises(OutputError, match="exists already"):
        quantize_bundle(Bundle.open(folder), folder, [videos], OPTIONS)
    options = QuantizeOptions(clips=16, held_out=8, overwrite=True)
    made = quantize_bundle(Bundle.open(folder), folder, [videos], options)
    assert made.bundle.graph("video", precision="int8").file == "video-uint8-int8.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_plans_of_a_bundle_are_not_thrown_away_with_it(tiny: Path, videos: Path, tmp_path: Path) -> None:
    require_nncf()
    folder = shutil.copytree(tiny, tmp_path / "b")
    (folder / "plans").mkdir()
    options = QuantizeOptions(clips=16, held_out=8, overwrite=True)
    with pytest.raises(OutputError, match=r"holds TensorRT plans, which would be lost; write to another folder"):
        quantize_bundle(Bundle.open(folder), folder, [videos], options)
    assert (folder / "plans").is_dir()


def _spoiled(change: Callable[[onnx.ModelProto], None]) -> Callable[..., bytes]:
    """Return a quantiser with a defect."""
    honest = quantize_nncf.quantize_graph

    def run(*arguments: Any) -> bytes:  # noqa: ANN401 - as the original
        model = onnx.load_from_string(honest(*arguments))
        change(model)
        return bytes(model.SerializeToString())

    return run


def _scale(factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (node,) = [node for node in model.graph.node if node.op_type == "Conv"]
        (producer,) = [other for other in model.graph.node if node.input[1] in other.output]
        (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == producer.input[1]]
        array = numpy_helper.to_array(scale) * np.float32(factor)
        scale.CopyFrom(numpy_helper.from_array(array, scale.name))

    return change


def test_a_graph_that_fails_the_gate_is_not_written(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_nncf()
    monkeypatch.setattr(quantize, "quantize_graph", _spoiled(_scale(3.0)))
    with pytest.raises(QuantizationError) as caught:
        quantize_bundle(Bundle.open(tiny), tmp_path / "out" / "int8", [videos], OPTIONS)
    assert "the INT8 graph's video_embedding on 8 held-out clips of 4x32x32x3 fails the int8 parity gate" in str(
        caught.value
    )
    assert "It is not written; calibrate on more clips (--clips)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_retrieves_worse_is_not_written(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_nncf()
    # A gate that lets everything pass, so that recall alone decides.
    lenient = {"cosine": -1.0, "centred_cosine": -1.0, "relative_error": 99.0, "spread_error": 99.0}
    gate = type(INT8_GATE)("int8", **lenient, scale_error=99.0, may_be_identical=False)
    monkeypatch.setattr(quantize, "INT8_GATE", gate)
    monkeypatch.setattr(quantize, "quantize_graph", _spoiled(_scale(-1.0)))
    with pytest.raises(QuantizationError) as caught:
        quantize_bundle(Bundle.open(tiny), tmp_path / "int8", [videos], OPTIONS)
    assert "retrieval with the INT8 graph is worse by more than 1 point, so it is not written" in str(caught.value)
    assert "FP32 clips find their INT8 ones: R@1 100.0 in FP32 and " in str(caught.value)
    assert "(8 queries, 8 candidates)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_nncf()
    kept = tmp_path / "temporary"
    kept.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept))

    def interrupted(*_: object) -> bytes:
        assert os.listdir(kept)  # noqa: PTH208 - the clips are there meanwhile
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "quantize_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(Bundle.open(tiny), tmp_path / "int8", [videos], OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert list(kept.iterdir()) == []


def test_wrong_bundles_are_refused_before_any_work(tmp_path: Path, videos: Path) -> None:
    require_nncf()
    write_tiny_bundle(tmp_path / "half", precisions=["fp16"])
    with pytest.raises(InputError, match=r"has no FP32 video graph that takes uint8 clips.*it has: video uint8 fp16"):
        quantize_bundle(Bundle.open(tmp_path / "half"), tmp_path / "out", [videos], OPTIONS)
    write_tiny_bundle(tmp_path / "floats", input_forms=["float32"])
    with pytest.raises(InputError, match="has no FP32 video graph that takes uint8 clips"):
        quantize_bundle(Bundle.open(tmp_path / "floats"), tmp_path / "out", [videos], OPTIONS)
    write_tiny_bundle(tmp_path / "plain")
    both = add_int8_by_hand(tmp_path / "plain", tmp_path / "both")
    with pytest.raises(InputError, match="has an INT8 graph already; use it as it is"):
        quantize_bundle(both, tmp_path / "out", [videos], OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_damaged_graph_is_refused(tiny: Path, videos: Path, tmp_path: Path) -> None:
    require_nncf()
    folder = shutil.copytree(tiny, tmp_path / "b")
    (folder / "video-uint8-fp32.onnx").write_bytes(b"changed")
    with pytest.raises(milnce.errors.BundleError, match="was changed or cut"):
        quantize_bundle(Bundle.open(folder), tmp_path / "out", [videos], OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clips": 7}, "clips is 7; a whole number of at least 8 expected"),
        ({"held_out": True}, "held_out is True; a whole number of at least 8 expected"),
        ({"seed": -1}, "seed -1 given; at least 0 expected"),
        ({"largest_fall_points": 101}, "largest_fall_points is 101; 0 to 100 expected"),
        ({"largest_fall_points": float("nan")}, "largest_fall_points is nan"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        QuantizeOptions(**changes)


def test_without_the_extra_it_says_what_to_install(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_nncf, "find_spec", lambda name: None if name in {"nncf", "onnx"} else object())
    with pytest.raises(MissingDependencyError, match=r'quantize needs nncf, onnx; run: pip install "milnce\[int8\]"'):
        quantize_bundle(Bundle.open(tiny), tmp_path / "out", [videos], OPTIONS)
    assert importlib.util.find_spec("onnx") is not None


def test_captions_of_other_videos_are_refused(tiny: Path, videos: Path, tmp_path: Path) -> None:
    require_nncf()
    (tmp_path / "captions.csv").write_text("video,caption\nelsewhere,open door\n", "utf-8")
    options = QuantizeOptions(
        clips=16, held_out=8, captions=read_captions(tmp_path / "captions.csv"), largest_fall_points=100
    )
    with pytest.raises(QuantizationError, match=r"none of the 1 clips of .* is among the videos that were held out"):
        quantize_bundle(Bundle.open(tiny), tmp_path / "out", [videos], options)


@pytest.mark.parametrize("copies", [0, 2])
def test_captions_of_a_single_video_are_refused(tiny: Path, tmp_path: Path, copies: int) -> None:
    require_nncf()
    folder = write_videos(tmp_path / "videos", 1, frames=120)
    for number in range(copies):
        shutil.copy(folder / "0.mp4", folder / f"copy{number}.mp4")
    (tmp_path / "captions.csv").write_text("video,caption\n0,open door\n", "utf-8")
    options = QuantizeOptions(clips=16, held_out=8, captions=read_captions(tmp_path / "captions.csv"))
    text = r"captions were given with a single video \(.*0\.mp4\), .*; give two or more different videos, or leave out"
    with pytest.raises(InputError, match=text):
        quantize_bundle(Bundle.open(tiny), tmp_path / "out", [folder], options)
    assert not (tmp_path / "out").exists()
