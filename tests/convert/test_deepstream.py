"""DeepStream configurations: every key and value one that its parsers know, and a graph that still is the bundle's."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers.deepstream_keys import INFER, PREPROCESS, PREPROCESS_REQUIRED, SAMPLE, read_key_file
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import BundleError, InputError, MissingDependencyError, OutputError
from milnce.specs import Dimension
from milnce_convert.deepstream import DeepstreamFolder, Streams, fix_sizes, write_deepstream

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("deepstream") / "tiny"
    write_tiny_bundle(path)
    return Bundle.open(path)


def with_sampling(bundle: Bundle, **sampling: Any) -> Bundle:  # noqa: ANN401 - fields of several types
    manifest = replace(bundle.manifest, sampling={**bundle.manifest.sampling, **sampling})
    return Bundle(bundle.path, manifest)


def read(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    infer = read_key_file(folder / "config_infer.txt", INFER)
    preprocess = read_key_file(folder / "config_preprocess.txt", PREPROCESS)
    return infer, preprocess


def test_every_key_and_value_is_one_that_the_parsers_know(tiny: Bundle, tmp_path: Path) -> None:
    write_deepstream(tiny, tmp_path / "ds", streams=Streams(count=3))
    infer, preprocess = read(tmp_path / "ds")
    assert list(infer) == ["property"]
    assert list(preprocess) == ["property", "user-configs", "group-0"]
    assert set(PREPROCESS_REQUIRED) <= set(preprocess["property"])
    keys = {**infer["property"], **preprocess["property"], **preprocess["group-0"]}
    assert {key: keys[key] for key in SAMPLE} == SAMPLE


def test_both_configurations_fit_each_other_and_the_graph(tiny: Bundle, tmp_path: Path) -> None:
    write_deepstream(tiny, tmp_path / "ds", streams=Streams(count=2))
    infer, preprocess = read(tmp_path / "ds")
    assert preprocess["property"]["target-unique-ids"] == infer["property"]["gie-unique-id"]
    assert preprocess["property"]["gpu-id"] == infer["property"]["gpu-id"]
    shape = list(map(int, preprocess["property"]["network-input-shape"].split(";")))
    assert shape == [2, 3, 4, 32, 32]
    assert shape[0] == int(infer["property"]["batch-size"])
    assert [preprocess["property"][f"processing-{axis}"] for axis in ("height", "width")] == ["32", "32"]
    session = onnxruntime.InferenceSession(tmp_path / "ds" / infer["property"]["onnx-file"])
    (tensor,) = session.get_inputs()
    assert tensor.name == preprocess["property"]["tensor-name"]
    assert (tensor.type, tensor.shape) == ("tensor(float)", ["batch", 3, 4, 32, 32])
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == infer["property"]["output-blob-names"].split(";") == ["video_embedding", "mixed_5c"]
    assert infer["property"]["model-engine-file"] == "milnce_video.onnx_b2_gpu0_fp32.engine"
    assert {path.name for path in (tmp_path / "ds").iterdir()} == {
        *("milnce_video.onnx", "config_infer.txt", "config_preprocess.txt"),
        *("vocabulary.txt", "README.md", "milnce.json"),
    }


def test_precision_is_the_graphs_and_no_flag(tiny: Bundle, tmp_path: Path) -> None:
    for precision in ("fp16", "fp32"):
        written = write_deepstream(tiny, tmp_path / precision, precision=precision)
        infer, _ = read(tmp_path / precision)
        assert (infer["property"]["network-mode"], infer["property"]["strongly-typed"]) == ("0", "1")
        assert written.graph.precision == precision
        proto = onnx.load(tmp_path / precision / "milnce_video.onnx")
        types = {weight.data_type for weight in proto.graph.initializer}
        assert (onnx.TensorProto.FLOAT16 in types) is (precision == "fp16")
    assert write_deepstream(tiny, tmp_path / "default").graph.precision == "fp16"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_with_fixed_sizes_gives_the_bundles_numbers(tiny: Bundle, precision: str) -> None:
    data = tiny.read(tiny.graph("video", precision=precision, input_form="float32"))
    # As the exporter writes it: with the sizes of what is inside, which name the dynamic axes too.
    data = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).SerializeToString()
    fixed = fix_sizes(data, {"frames": 4, "height": 32, "width": 32})
    clips = np.random.default_rng(0).random((3, 3, 4, 32, 32), dtype=np.float32)
    expected, given = (onnxruntime.InferenceSession(model).run(None, {"video": clips}) for model in (data, fixed))
    for one, other in zip(expected, given, strict=True):
        np.testing.assert_array_equal(one, other)
    proto = onnx.ModelProto.FromString(fixed)
    names = {axis.dim_param for value in proto.graph.value_info for axis in value.type.tensor_type.shape.dim}
    assert "batch" in names
    assert names <= {"batch", ""}
    assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in proto.graph.output)


def test_a_graph_of_fixed_sizes_is_taken_as_it_is_without_onnx(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    monkeypatch.setattr("milnce_convert.deepstream.find_spec", importlib.util.find_spec)
    with pytest.raises(MissingDependencyError, match=r"pip install onnx, or give a bundle .* --fixed-size"):
        write_deepstream(tiny, tmp_path / "ds")
    graph = tiny.graph("video", precision="fp32", input_form="float32")
    axes = (Dimension("batch", 1, None), *map(Dimension.fixed, (3, 16, 48, 64)))
    fixed = replace(graph, inputs=(replace(graph.inputs[0], shape=axes),))
    bundle = Bundle(tiny.path, replace(tiny.manifest, graphs=(fixed,)))
    written = write_deepstream(bundle, tmp_path / "ds")
    assert written.sizes == (16, 48, 64)  # the graph's own, whatever the bundle samples
    assert (tmp_path / "ds" / "milnce_video.onnx").read_bytes() == tiny.read(graph)
    _, preprocess = read(tmp_path / "ds")
    assert preprocess["property"]["network-input-shape"] == "1;3;16;48;64"
    assert (preprocess["property"]["processing-width"], preprocess["property"]["processing-height"]) == ("64", "48")


@pytest.mark.parametrize(
    ("width", "height", "square"),
    [
        (1280, 720, "280;0;720;720"),
        (720, 1280, "0;280;720;720"),
        (640, 640, "0;0;640;640"),
        (1921, 1081, "420;0;1080;1080"),
        (101, 35, "32;0;34;34"),
    ],
)
def test_the_region_is_the_centre_square(tiny: Bundle, tmp_path: Path, width: int, height: int, square: str) -> None:
    write_deepstream(tiny, tmp_path / "ds", streams=Streams(count=2, width=width, height=height))
    _, preprocess = read(tmp_path / "ds")
    group = preprocess["group-0"]
    assert group["src-ids"] == "0;1"
    assert [group["roi-params-src-0"], group["roi-params-src-1"]] == [square, square]
    assert list(group).index("process-on-roi") < list(group).index("roi-params-src-0")
    left, top, *sides = map(int, square.split(";"))
    assert left + sides[0] <= width
    assert top + sides[1] <= height


@pytest.mark.parametrize(
    ("preset", "fps", "frames", "subsample", "stride"),
    [
        ("milnce-native", 30.0, 32, 2, 16),
        ("milnce-native", 29.97, 32, 2, 16),
        ("milnce-native", 25.0, 32, 1, 16),
        ("milnce-native", 5.0, 32, 0, 16),
        ("milnce-eval", 30.0, 16, 5, 8),
        ("sliding", 60.0, 32, 5, 16),
        ("tfhub-colab", 30.0, 32, 0, 16),
    ],
)
def test_frames_are_taken_at_the_presets_rate(
    tiny: Bundle, tmp_path: Path, preset: str, fps: float, frames: int, subsample: int, stride: int
) -> None:
    bundle = with_sampling(tiny, preset=preset, frames=frames)
    written = write_deepstream(bundle, tmp_path / "ds", streams=Streams(fps=fps))
    _, preprocess = read(tmp_path / "ds")
    user = preprocess["user-configs"]
    assert (user["subsample"], user["stride"]) == (str(subsample), str(stride))
    assert preprocess["property"]["network-input-shape"].split(";")[2] == str(frames)
    assert written.fps == fps / (subsample + 1)


def test_pixels_are_scaled_to_one_and_nothing_else(tiny: Bundle, tmp_path: Path) -> None:
    write_deepstream(tiny, tmp_path / "ds")
    _, preprocess = read(tmp_path / "ds")
    scales = [float(text) for text in preprocess["user-configs"]["channel-scale-factors"].split(";")]
    offsets = [float(text) for text in preprocess["user-configs"]["channel-mean-offsets"].split(";")]
    # The kernel computes in float32: value * scale - scale * offset.
    values = np.arange(256, dtype=np.float32) * np.float32(scales[0])
    assert len(scales) == len(offsets) == 3
    assert set(scales) == {1 / 255}
    assert set(offsets) == {0.0}
    np.testing.assert_allclose(values, np.arange(256) / 255, rtol=1.2e-7)
    assert values.max() <= 1


def test_it_says_what_was_written(tiny: Bundle, tmp_path: Path) -> None:
    written = write_deepstream(tiny, tmp_path / "ds", streams=Streams(count=2, fps=25))
    assert str(written) == (
        "2 x video float32 fp16 (video-float32-fp16.onnx): clips of 4 frames of 32x32 at 12.5 a second "
        "(the bundle samples 10), every 0.16 s"
    )
    page = (tmp_path / "ds" / "README.md").read_text(encoding="utf-8")
    for text in (
        str(written),
        "batch-size=2 width=1280 height=720",
        "`video` float32 (2, 3, 4, 32, 32)",
        "of each 2, one is taken, which is 12.5 a second; the bundle samples 10.",
        "`video_embedding`, 8 floats and `mixed_5c`, 12 floats",
        "None of this has run in DeepStream",
    ):
        assert text in page
    record = json.loads((tmp_path / "ds" / "milnce.json").read_bytes())
    assert (record["kind"], record["precision"], record["sizes"]) == ("deepstream", "fp16", [4, 32, 32])
    assert record["onnx_sha256"] == written.graph.sha256
    assert (tmp_path / "ds" / "vocabulary.txt").read_bytes() == (tiny.path / "vocabulary.txt").read_bytes()


def test_a_rate_that_is_met_is_not_remarked_on(tiny: Bundle) -> None:
    graph = tiny.graph("video", input_form="float32")
    written = DeepstreamFolder(graph, Streams(), (32, 224, 224), 2, 16, 10.0)
    assert str(written).endswith("clips of 32 frames of 224x224 at 10 a second, every 1.6 s")


def test_without_a_float32_graph_it_says_what_to_export(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", input_forms=("uint8",))
    with pytest.raises(BundleError, match=r"no float32 video graph.*--input-form float32"):
        write_deepstream(Bundle.open(tmp_path / "bundle"), tmp_path / "ds")


def test_sizes_that_the_graph_refuses_are_named(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"samples frames 5, and its video graph takes frames=4\.\. step 2"):
        write_deepstream(with_sampling(tiny, frames=5), tmp_path / "ds")


def test_an_unknown_preset_is_named(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preset 'of-a-newer-release'"):
        write_deepstream(with_sampling(tiny, preset="of-a-newer-release"), tmp_path / "ds")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "streams: count is 0; at least 1 expected"),
        ({"width": 1}, "streams: width is 1; at least 2 expected"),
        ({"height": -4}, "streams: height is -4"),
        ({"fps": 0.0}, r"streams: fps is 0.0; a number in \(0, 1000\] expected"),
        ({"fps": float("nan")}, "streams: fps is nan"),
        ({"fps": float("inf")}, "streams: fps is inf"),
    ],
)
def test_impossible_streams_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Streams(**values)


def test_an_existing_folder_is_not_replaced_unasked(tiny: Bundle, tmp_path: Path) -> None:
    write_deepstream(tiny, tmp_path / "ds")
    with pytest.raises(OutputError, match="--overwrite"):
        write_deepstream(tiny, tmp_path / "ds")
    write_deepstream(tiny, tmp_path / "ds", streams=Streams(count=7), overwrite=True)
    assert read(tmp_path / "ds")[0]["property"]["batch-size"] == "7"


@pytest.mark.parametrize(
    "text",
    [
        "[property]\nbatch_size=1\n",
        "[property]\nbatch-size=0\n",
        "[property]\nbatch-size=1\nbatch-size=2\n",
        "[properties]\nbatch-size=1\n",
        "[property]\nnetwork-type=5\n",
    ],
)
def test_the_checker_refuses_what_the_parsers_do_not_know(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.txt").write_text(text, encoding="ascii")
    with pytest.raises(AssertionError):
        read_key_file(tmp_path / "config.txt", INFER)
