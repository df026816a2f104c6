"""Work of layers against hand-computed numbers and PyTorch's own counter, and the roofline's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

import bounds
import harness
import peaks
import profiles
import roofline
from layers import Layer, count_layers
from milnce.backends import openvino as openvino_backend
from milnce.timing import Timing
from milnce_convert.sample_inputs import moving_clips
from milnce_convert.towers import S3D, TowersConfig
from peaks import Peak
from render import roofline as page

CLIP = (8, 32, 48)
DEMO = Path(__file__).parents[2] / "engines" / "demo"


@pytest.fixture(scope="module")
def demo() -> bytes:
    """Return the demo bundle's video graph: a quarter-width tower."""
    return (DEMO / "video-uint8-fp32.onnx").read_bytes()


def graph(*nodes: onnx.NodeProto, weights: dict[str, tuple[int, ...]] | None = None) -> bytes:
    """Return a graph over uint8 or float clips called "x" that ends in "y", with weights of these shapes."""
    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).ravel())
        for name, shape in (weights or {}).items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "t", "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *[None] * 4])
    made = helper.make_graph(list(nodes), "graph", [x], [y], tensors)
    model: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    return model


def convolution(**attributes: Any) -> onnx.NodeProto:  # noqa: ANN401
    return helper.make_node("Conv", ["x", "w"], ["c"], "c", **attributes)


RELU = helper.make_node("Relu", ["c"], ["y"], "r")


def test_a_convolution_counts_its_multiply_adds_with_and_without_padding() -> None:
    node = convolution(kernel_shape=[1, 3, 3], pads=[0, 1, 1, 0, 1, 1])
    (layer,) = count_layers(graph(node, RELU, weights={"w": (5, 3, 1, 3, 3)}), (2, 4, 6))
    assert layer.output == (1, 5, 2, 4, 6)
    assert layer.flops == 2 * 5 * 3 * 9 * 2 * 4 * 6
    # Of 4 rows x 3 taps 10 meet a row, of 6 columns x 3 taps 16 a column.
    assert layer.inner_flops == 2 * 5 * 3 * 2 * 10 * 16
    assert layer.bytes == 4 * (3 * 2 * 4 * 6 + 5 * 3 * 9 + 5 * 2 * 4 * 6)
    assert (layer.name, layer.nodes, layer.kind) == ("c", ("c", "r"), "stem convolution")
    assert layer.operations == 0


def test_strides_dilations_and_groups_are_counted() -> None:
    strided = convolution(kernel_shape=[1, 1, 3], strides=[1, 1, 2], pads=[0, 0, 1, 0, 0, 0])
    (layer,) = count_layers(graph(strided, RELU, weights={"w": (2, 3, 1, 1, 3)}), (2, 2, 6))
    assert layer.output[-1] == 3
    assert (layer.flops, layer.inner_flops) == (2 * 2 * 3 * 4 * 9, 2 * 2 * 3 * 4 * 8)  # one tap is left of the picture
    dilated = convolution(kernel_shape=[1, 1, 2], dilations=[1, 1, 3], pads=[0, 0, 0, 0, 0, 3])
    (layer,) = count_layers(graph(dilated, RELU, weights={"w": (2, 3, 1, 1, 2)}), (2, 2, 6))
    assert (layer.flops, layer.inner_flops) == (2 * 2 * 3 * 4 * 12, 2 * 2 * 3 * 4 * (6 + 3))
    grouped = convolution(kernel_shape=[1, 1, 1], group=3)
    (layer,) = count_layers(graph(grouped, RELU, weights={"w": (6, 1, 1, 1, 1)}), (2, 2, 2))
    assert layer.flops == 2 * 6 * 8


def test_a_pool_compares_every_tap_and_multiplies_nothing() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], "p", kernel_shape=[1, 3, 3], strides=[1, 2, 2], pads=[0] * 6)
    (layer,) = count_layers(graph(node), (2, 7, 9))
    assert layer.output == (1, 3, 2, 3, 4)
    assert (layer.flops, layer.operations) == (0, 9 * 3 * 2 * 3 * 4)
    assert layer.bytes == 4 * (3 * 2 * 7 * 9 + 3 * 2 * 3 * 4)


def test_an_operator_that_is_not_known_is_refused() -> None:
    with pytest.raises((ValueError, KeyError), match="Softplus"):
        count_layers(graph(helper.make_node("Softplus", ["x"], ["y"], "s")), (2, 4, 4))


def test_the_tower_has_the_flops_that_pytorch_counts(demo: bytes) -> None:
    with torch.device("meta"):
        tower = S3D(TowersConfig.scaled(0.25, rows=2, embedding=128).video)
        with FlopCounterMode(display=False) as counter:
            tower(torch.zeros(1, 3, *CLIP))
    layers = count_layers(demo, CLIP)
    # PyTorch's tower computes the stem one step further on each axis and cuts that off; a gate's weights are computed
    # once a frame in the graph and once a clip in PyTorch.
    stem = next(layer for layer in layers if layer.kind == "stem convolution")
    frames, rows, columns = stem.output[2:]
    cut = stem.flops * ((frames + 1) * (rows + 1) * (columns + 1) / (frames * rows * columns) - 1)
    gates = sum(layer.flops * (1 - 1 / layer.output[2]) for layer in layers if layer.kind == "gate: weights")
    assert sum(layer.flops for layer in layers) + cut - gates == pytest.approx(counter.get_total_flops(), rel=1e-9)
    assert 0.5 < sum(layer.inner_flops for layer in layers) / sum(layer.flops for layer in layers) < 0.99


def test_every_node_is_in_one_layer_and_two_clips_are_twice_the_work(demo: bytes) -> None:
    layers, pairs = count_layers(demo, CLIP), count_layers(demo, CLIP, batch=2)
    nodes = [name for layer in layers for name in layer.nodes]
    assert sorted(nodes) == sorted(node.name for node in onnx.load_model_from_string(demo).graph.node)
    assert [pair.work for pair in pairs] == [2 * layer.work for layer in layers]
    assert layers[0].nodes == ("video_cast", "video_scale", "video_permute")
    assert layers[0].bytes == 3 * 8 * 32 * 48 * (1 + 4)  # uint8 in, float32 out


def layer(work: int, size: int, kind: str = "convolution 1x1x1", name: str = "a") -> Layer:
    return Layer(name, (name,), (f"{name}_output",), kind, work, work, 0, size, (1,))


ROOF = bounds.Roof("product", 1000.0, 10.0, 50.0, 100)


def test_a_layer_is_bounded_by_what_takes_longer_and_the_cache_serves_what_fits() -> None:
    assert ROOF.bound_s(layer(5000, 200)) == 20.0  # from memory
    assert ROOF.bound_s(layer(30_000, 200)) == 30.0  # by arithmetic
    assert ROOF.bound_s(layer(50, 100)) == 2.0  # from the cache
    slow_cache = bounds.Roof("product", 1000.0, 10.0, 5.0, 100)
    assert slow_cache.bandwidth(layer(1, 100)) == 10.0  # a copy that was disturbed says nothing about the cache


def test_layers_are_scaled_to_the_time_of_the_whole_and_summed_by_kind() -> None:
    layers = [layer(4000, 10, name="a"), layer(1000, 10, name="b"), layer(0, 500, "concatenation", "c")]
    found = bounds.layer_rows(layers, ({"a": 1.0, "b": 2.0, "c": 0.5}, 0.5), 80.0, ROOF)
    assert [row["took_s"] for row in found["layers"]] == [20.0, 40.0, 10.0]
    assert [row["bounded_by"] for row in found["layers"]] == ["peak", "peak", "memory"]
    assert [(kind["kind"], kind["count"], kind["took_s"], kind["bound_s"]) for kind in found["kinds"]] == [
        ("convolution 1x1x1", 2, 60.0, 5.0),
        ("concatenation", 1, 10.0, 50.0),
        ("other", 0, 10.0, 0.0),
    ]
    assert (found["took_s"], found["counted_s"], found["bound_s"]) == (80.0, 4.0, 55.0)
    assert found["share_of_bound"] == 55 / 80
    text = bounds.what_bounds(found["kinds"], 1000.0)
    assert text.startswith("convolutions take 75% of the time, at 8% of the peak")
    assert "concatenation 12.5%, other 12.5%" in text


def test_shares_are_taken_round_by_round() -> None:
    # Both at half speed in the second round: the share is the same.
    found = bounds.shares(100.0, [1.0, 2.0, 4.0], 50.0, [0.25, 0.5, 0.5])
    assert found == {"median": 0.5, "minimum": 0.25, "maximum": 0.5}


def rates() -> tuple[bounds.Rates, list[Peak]]:
    tops = [
        Peak("slow product", "compute", "fp32", 100.0, list),
        Peak("slower product", "compute", "fp32", 50.0, list),
        Peak("fast", "compute", "fp32", 400.0, list),
        Peak("other", "compute", "bf16", 900.0, list),
        Peak("copy", "memory", "", 20.0, list),
        Peak("near", "cache", "", 60.0, list),
    ]
    rounds = {peak.key: (Timing((2.0, 2.0)), [1.0, 1.0]) for peak in tops}
    return bounds.Rates({**rounds, "model": (Timing((5.0, 5.0)), [4.0, 4.0])}), tops


def test_the_peak_is_the_fastest_of_its_precision() -> None:
    found, tops = rates()
    assert found.roof("fp32", tops, 7) == bounds.Roof("fast fp32", 200.0, 10.0, 30.0, 7)
    assert found.roof("int8", tops, 7) is None
    figures = found.of_model("model", "fp32", [layer(500, 1)], tops)
    assert figures["peak"] == "fast fp32"
    assert figures["share_of_peak"]["median"] == 100.0 / 200.0
    assert figures["share_of_peak_by_cpu_time"]["median"] == 125.0 / 400.0
    assert "share_of_peak" not in found.of_model("model", "int8", [layer(500, 1)], tops)
    assert figures["share_of_product"]["median"] == 100.0 / 50.0
    assert found.of_model("model", "bf16", [layer(500, 1)], tops)["share_of_product"] is None
    assert found.of_peak(tops[2])["rate_per_s"] == 200.0
    assert found.of_peak(tops[2])["rate_per_cpu_s"] == 400.0


def test_the_runs_of_a_profile_are_told_apart() -> None:
    def node(name: str, microseconds: int) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}

    run = {"cat": "Session", "name": "model_run", "dur": 1}
    load = {"cat": "Session", "name": "model_loading_uri", "dur": 5}
    events = [load, node("a", 10), node("b", 20), run, node("a", 30), {"cat": "Node", "name": "a_fence", "dur": 9}, run]
    assert profiles.split_runs(events) == [{"a": 1e-5, "b": 2e-5}, {"a": 3e-5}]


def test_times_of_nodes_become_times_of_layers() -> None:
    first = Layer("a", ("a", "relu"), ("a_output",), "head", 0, 0, 0, 1, (1,))
    runs = [
        {"a": 1.0, "relu": 2.0, "reorder": 0.25},
        {"a_output": 3.0, "b": 7.0},
        {"a": 5.0, "b": 9.0, "reorder": 0.75},
    ]
    times, rest = profiles.seconds_of_layers([first, layer(1, 1, name="b")], runs)
    assert times == {"a": 3.0, "b": 7.0}
    assert rest == 0.25


@pytest.mark.parametrize("make", [peaks.openvino_product, peaks.openvino_convolution])
def test_peaks_do_the_work_they_claim(make: Any) -> None:  # noqa: ANN401
    assert openvino_backend.probe().usable
    small = make("fp32", 1, 16)
    small.call()
    assert small.kind == "compute"
    expected = 12 * 2 * 16**3 if make is peaks.openvino_product else 4 * 10 * 2 * 16**2 * 8 * (28 * 3 - 2) ** 2
    assert small.amount == expected


def test_a_copy_counts_what_is_read_and_what_is_written() -> None:
    memory, cache = peaks.copies(2, 1 << 22)
    assert (memory.kind, cache.kind) == ("memory", "cache")
    assert memory.amount == 2 * (128 << 20)
    cache.call()


def small_peaks() -> list[Peak]:
    return [peaks.numpy_product(64), peaks.openvino_convolution("fp32", 1, 8), *peaks.copies(1, 1 << 16)]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Return a report on the demo bundle, made by the command's own functions and read back from JSON."""
    clips = moving_clips(3, 8, 32, 32, seed=3)
    bundle, reference = roofline.subject(DEMO, DEMO, clips)
    found = roofline.measure(bundle, clips, reference, device="cpu", rounds=2, tops=small_peaks())
    loaded: dict[str, Any] = json.loads(json.dumps(harness.plain(found), allow_nan=False))
    return loaded


def test_the_report_has_every_exact_backend_with_its_share_and_its_layers(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    for name in ("openvino fp32", "onnxruntime fp32"):
        row = rows[name]
        assert row["failures"] == []
        assert row["share_of_peak"]["minimum"] > 0
        assert row["took_s"] == row["timing"]["median_s"]
        assert sum(layer["took_s"] for layer in row["layers"]) > 0.8 * row["took_s"]  # the rest are conversions
        assert all(kind["took_s"] > 0 for kind in row["kinds"] if kind["kind"].startswith("convolution"))
    product, peak = report["targets"]
    best = max(
        (rows[name] for name in ("openvino fp32", "onnxruntime fp32")), key=lambda row: row["share_of_peak"]["median"]
    )
    assert (product["wanted"], peak["wanted"]) == (0.85, 0.85)
    assert product["measured"] == best["share_of_product"]["median"]
    assert peak["measured"] == best["share_of_peak"]["median"]
    assert "convolutions take" in peak["bound"]


def test_times_are_of_one_clip_and_without_what_warmed_up() -> None:
    timing, cpu_s = roofline._each(Timing((3.0, 6.0)), [9.0, 1.5, 3.0], 3)  # noqa: SLF001
    assert (timing.seconds, cpu_s) == ((1.0, 2.0), [0.5, 1.0])


def test_outputs_that_fail_their_gate_have_no_speed() -> None:
    clips = moving_clips(3, 8, 32, 32, seed=3)
    bundle, reference = roofline.subject(DEMO, DEMO, clips)
    found = roofline.measure(bundle, clips, reference[::-1], device="cpu", rounds=1, tops=small_peaks())
    assert all(row["failures"] and "timing" not in row and "layers" not in row for row in found["rows"])
    assert [target["measured"] for target in found["targets"]] == [None, None]
    text = page.markdown(found)
    assert "fails the fp32 gate" in text


def test_the_page_says_whether_threads_have_cores_of_their_own() -> None:
    one = {"name": "c, 1 thread", "kind": "one thread", "precision": "fp32", "rate_per_s": 4.0, "spread": 0.0}
    peak = {"rate_per_cpu_s": None, **one, "name": "c", "kind": "compute", "rate_per_s": 7.6}
    found = {"settings": {"threads": 2, "blas_kernels": None}, "peaks": [{"rate_per_cpu_s": None, **one}, peak]}
    assert "2 threads do 1.90 times what one does: cores of their own" in page.peaks_table(found)
    peak["rate_per_s"] = 4.4
    assert "2 threads do 1.10 times what one does: they share a core" in page.peaks_table(found)


def test_the_page_has_the_figures_and_the_picture_is_drawn(report: dict[str, Any], tmp_path: Path) -> None:
    text = page.markdown(report)
    row = report["rows"][0]
    assert f"| {row['name']} | {row['timing']['median_s']:.3f} |" in text
    assert f"{row['share_of_peak']['median']:.0%}" in text
    assert "| stem convolution | 1 |" in text
    drawn = page.figure(report)
    assert drawn is not None
    drawn.savefig(tmp_path / "roofline.png")
    dots, bars = drawn.axes
    assert dots.get_xscale() == dots.get_yscale() == "log"
    assert len(bars.get_yticklabels()) == 2 * len([row for row in report["rows"] if "layers" in row])
    assert page.figure({**report, "rows": []}) is None
