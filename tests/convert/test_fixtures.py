"""The parity fixture must make the question hard; these fail when it is dull, and a default-initialised tower fails."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers.graphs import ROWS
from milnce_convert.export import half_precision
from milnce_convert.fixtures import WORDS, as_video, moving_clips, random_tokens, seeded_towers
from milnce_convert.measure import run_graph
from milnce_convert.towers import S3D, TowersConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helpers.graphs import Traced

SIZES = [(16, 64, 64), (8, 96, 72)]
# 1 - cosine 1e-3 is what FP16 rounding may cost; the fixture's clips must lie far beyond it, seen from their mean.
MOST_CENTRED_COSINE = 0.9


def largest_values(tower: S3D, clips: NDArray[np.uint8]) -> tuple[dict[str, float], NDArray[np.float32]]:
    """Return max |a| of every module's output, and the embeddings."""
    found: dict[str, float] = {}

    def keep(name: str, output: Any) -> None:  # noqa: ANN401  a tensor, or the tower's dict of them
        tensors = output.values() if isinstance(output, dict) else [output]
        found[name] = max(float(tensor.abs().max()) for tensor in tensors)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in tower.named_modules()
    ]
    with torch.no_grad():
        embedding = tower(as_video(clips))["video_embedding"].numpy()
    for hook in hooks:
        hook.remove()
    return found, embedding


def dullness(largest: dict[str, float], embedding: NDArray[np.float32], fp16_error: float) -> list[str]:
    """Return what makes a fixture too easy; empty for a good one.

    Args:
        largest: max |a| of each layer.
        embedding: (N, D) of N different clips.
        fp16_error: Largest distance between a clip's FP32 and FP16 embedding.
    """
    problems = [f"{name}: max |a| {value:.3g}" for name, value in largest.items() if not 1e-2 <= value <= 1e4]
    pairs = list(itertools.combinations(range(len(embedding)), 2))
    nearest = min(float(np.linalg.norm(embedding[i] - embedding[j])) for i, j in pairs)
    if not nearest >= 20 * fp16_error:
        problems.append(f"nearest clips {nearest:.3g} apart, FP16 error {fp16_error:.3g}")
    centred = embedding - embedding.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    cosine = max(float(centred[i] @ centred[j] / (norms[i] * norms[j])) for i, j in pairs)
    if not cosine <= MOST_CENTRED_COSINE:
        problems.append(f"centred cosine {cosine:.6g}")
    return problems


def _fp16_error(traced: Traced, clips: NDArray[np.uint8]) -> float:
    graph = traced.graphs()["uint8"]
    plain, half = (run_graph(item.model, {"video": clips}) for item in (graph, half_precision(graph)))
    return float(np.linalg.norm(plain["video_embedding"] - half["video_embedding"], axis=1).max())


@pytest.mark.parametrize("size", SIZES)
def test_the_fixture_is_not_dull(full: Traced, size: tuple[int, int, int]) -> None:
    clips = moving_clips(6, *size, seed=7)
    largest, embedding = largest_values(full.towers.video, clips)
    assert len(largest) > 200
    assert dullness(largest, embedding, _fp16_error(full, clips)) == []


def test_a_default_initialised_tower_is_dull_by_every_measure() -> None:
    torch.manual_seed(0)
    tower = S3D(TowersConfig.scaled(0.25).video).eval()
    largest, embedding = largest_values(tower, moving_clips(6, 16, 64, 64, seed=7))
    # FP16 keeps 11 bits: the least error of an honest cast, for embeddings of this size.
    fp16_error = float(np.linalg.norm(embedding, axis=1).max()) * 2.0**-11
    text = "; ".join(dullness(largest, embedding, fp16_error))
    assert "mixed_5c: max |a|" in text
    assert "nearest clips" in text


def test_outputs_differ_between_seeds_and_repeat_with_one() -> None:
    config = TowersConfig.scaled(0.125, rows=ROWS)
    first, again, other = (seeded_towers(seed, config, calibration_size=(4, 32, 32)) for seed in (4, 4, 5))
    assert first.digest() == again.digest() != other.digest()
    assert first.words == tuple(dict.fromkeys(WORDS))
    assert first.text.config.rows == len(first.words) + 1
    assert not first.video.training


def test_every_bias_that_a_defect_could_drop_is_there(full: Traced) -> None:
    for name, value in full.towers.video.state_dict().items():
        if name.endswith(".fc.bias"):
            assert float(value.abs().mean()) > 0.1, name
        if ".bn" in name and name.endswith("bias"):
            assert float(value.min()) > 0, name
        if name.endswith("running_var"):
            assert float(value.min()) > 0, name


def test_clips_are_distinct_moving_and_repeatable() -> None:
    clips = moving_clips(5, 8, 32, 40, seed=3)
    assert clips.shape == (5, 8, 32, 40, 3)
    assert clips.dtype == np.uint8
    np.testing.assert_array_equal(clips, moving_clips(5, 8, 32, 40, seed=3))
    assert not np.array_equal(clips, moving_clips(5, 8, 32, 40, seed=4))
    for one, other in itertools.combinations(clips.astype(int), 2):
        assert np.abs(one - other).mean() > 10
    for clip in clips.astype(int):
        assert np.abs(clip[0] - clip[-1]).mean() > 1, "something moves"
        assert clip.std(axis=(1, 2)).min() > 1, "something is to be seen in each channel"


def test_video_tensor_is_rgb_in_0_to_1_channels_first() -> None:
    clips = moving_clips(2, 4, 6, 8)
    clips[0, 1, 2, 3] = (255, 51, 0)
    video = as_video(clips)
    assert tuple(video.shape) == (2, 3, 4, 6, 8)
    assert video[0, :, 1, 2, 3].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert float(video.min()) >= 0
    assert float(video.max()) <= 1


def test_tokens_have_full_and_padded_sentences() -> None:
    tokens = random_tokens(20, 50, words=7, seed=2)
    assert tokens.shape == (20, 7)
    assert tokens.dtype == np.int64
    assert (tokens[0] > 0).all()
    assert (tokens[1:, -1] == 0).all()
    assert (tokens[:, 0] > 0).all()
    assert tokens.max() < 50
    assert len({tuple(row) for row in tokens}) == 20
