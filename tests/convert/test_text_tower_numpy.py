"""The text tower in NumPy against the PyTorch tower and ONNX Runtime, for every opset that milnce writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch

from milnce.onnx_reader import read_graph
from milnce.text_tower import TextTower
from milnce.tower_forms import projection_weights, text_weights
from milnce_convert.export import DEFAULT_OPSET, SUPPORTED_OPSETS, export_projection, export_text, half_precision
from milnce_convert.lowering import lower_to_opset_17
from milnce_convert.towers import TextConfig
from milnce_convert.towers import TextTower as TorchTower

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce_convert.checkpoint import Towers

ROWS, HIDDEN = 500, 512
# Of the largest value: what the project promises of this path.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tower() -> TorchTower:
    torch.manual_seed(5)
    return TorchTower(TextConfig(rows=ROWS, word=300, hidden=HIDDEN, embedding=128)).eval()


def tokens_of(count: int, words: int, seed: int) -> NDArray[np.int64]:
    """Return sentences of every length, none of them included."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, words + 1, count)
    return np.where(np.arange(words) < lengths[:, None], rng.integers(1, ROWS, (count, words)), 0)


def assert_near(found: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    assert np.abs(found - right).max() <= TOLERANCE * np.abs(right).max()


@pytest.mark.parametrize("opset", SUPPORTED_OPSETS)
def test_every_opset_gives_the_numbers_of_pytorch_and_onnx_runtime(tower: TorchTower, opset: int) -> None:
    model = export_text(tower, opset=opset).model
    weights = text_weights(read_graph(model, "text.onnx"))
    assert weights is not None
    mine = TextTower(weights)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    large = ((1000, 16), (5000, 3)) if opset == DEFAULT_OPSET else ()
    for count, words in ((1, 1), (1, 16), (1, 30), (2, 5), (17, 16), (300, 2), *large):
        tokens = tokens_of(count, words, seed=count + words)
        found = mine(tokens)
        with torch.no_grad():
            assert_near(found, tower(torch.from_numpy(tokens))["text_embedding"].numpy())
        assert_near(found, session.run(None, {"tokens": tokens})[0])
    with torch.no_grad():
        nothing = tower(torch.zeros(3, 16, dtype=torch.int64))["text_embedding"].numpy()
    assert_near(mine(np.zeros((3, 16), np.int64)), nothing)


def test_the_opset_of_old_tensorrt_is_known_too(tower: TorchTower) -> None:
    model = lower_to_opset_17(export_text(tower).model)
    weights = text_weights(read_graph(model, "text.onnx"))
    assert weights is not None
    tokens = tokens_of(20, 16, seed=0)
    with torch.no_grad():
        right = tower(torch.from_numpy(tokens))["text_embedding"].numpy()
    assert_near(TextTower(weights)(tokens), right)


def test_the_fp16_graph_is_left_to_a_backend(tower: TorchTower) -> None:
    assert text_weights(read_graph(half_precision(export_text(tower)).model, "text.onnx")) is None


@pytest.mark.parametrize("opset", SUPPORTED_OPSETS)
def test_the_projection_gives_pytorchs_numbers(short: Towers, opset: int) -> None:
    layer = projection_weights(read_graph(export_projection(short.video, opset=opset).model, "projection.onnx"))
    assert layer is not None
    features = np.random.default_rng(0).random((40, short.video.config.mixed_5c), dtype=np.float32)
    with torch.no_grad():
        right = short.video.fc(torch.from_numpy(features)).numpy()
    assert_near(features @ layer.weight + layer.bias, right)
