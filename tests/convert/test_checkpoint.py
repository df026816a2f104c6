"""Weights files: what loads, and what is refused and how."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.payload import Payload
from milnce.errors import CheckpointError
from milnce_convert.checkpoint import Towers, load_towers, read_tensors
from milnce_convert.fixtures import seeded_towers
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    Tensors = dict[str, Tensor]

WORDS = ("open", "the", "door", "naïve", "don't")
CONFIG = TowersConfig.scaled(0.125, rows=len(WORDS) + 1, embedding=16)


@pytest.fixture(scope="module")
def towers() -> Towers:
    return seeded_towers(3, CONFIG, words=WORDS, calibration_size=(4, 32, 32))


@pytest.fixture
def tensors(towers: Towers) -> Tensors:
    text = {f"text_module.{name}": value for name, value in towers.text.state_dict().items()}
    return {name: value.clone() for name, value in {**towers.video.state_dict(), **text}.items()}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "dict.npy"
    np.save(path, np.array(WORDS))
    return path


def _saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


def _prefixed(tensors: Tensors) -> Tensors:
    return {f"module.{name}": value for name, value in tensors.items()}


def _refusal(weights: Path, vocabulary: Path, config: TowersConfig | None = CONFIG) -> str:
    """Return the error's text, having seen that nothing was written beside the files."""
    before = sorted(weights.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        load_towers(weights, vocabulary, config)
    assert sorted(weights.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("form", ["bare", "state_dict", "module", "both", "legacy", "safetensors"])
def test_every_published_form_loads_to_the_same_weights(
    form: str, towers: Towers, tensors: Tensors, vocabulary: Path, tmp_path: Path
) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "legacy":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    else:
        content: dict[str, Any] = _prefixed(tensors) if form in {"module", "both"} else tensors
        torch.save({"epoch": 7, "state_dict": content} if form in {"state_dict", "both"} else content, path)
    loaded = load_towers(path, vocabulary, CONFIG)
    assert loaded.digest() == towers.digest()
    assert loaded.words == WORDS
    assert not loaded.video.training
    video, tokens = torch.rand(1, 3, 4, 32, 32), torch.tensor([[1, 5, 0]])
    with torch.no_grad():
        assert torch.equal(loaded.video(video)["video_embedding"], towers.video(video)["video_embedding"])
        assert torch.equal(loaded.text(tokens)["text_embedding"], towers.text(tokens)["text_embedding"])


def test_published_widths_and_the_plain_stem_are_recognised(tmp_path: Path, vocabulary: Path) -> None:
    for space_to_depth in (True, False):
        config = TowersConfig.scaled(rows=len(WORDS) + 1, space_to_depth=space_to_depth)
        towers = seeded_towers(0, config, words=WORDS, calibration_size=(4, 32, 32))
        text = {f"text_module.{name}": value for name, value in towers.text.state_dict().items()}
        path = _saved(tmp_path, {**towers.video.state_dict(), **text})
        loaded = load_towers(path, vocabulary)
        assert loaded.config == config
        assert loaded.digest() == towers.digest()


def test_every_problem_is_in_one_error(tensors: Tensors, vocabulary: Path, tmp_path: Path) -> None:
    del tensors["fc.bias"], tensors["mixed_4c.gating_b2.fc.weight"], tensors["text_module.fc1.bias"]
    tensors["extra.weight"] = torch.zeros(2, 3)
    tensors["conv_2b.conv1.weight"] = torch.zeros(8, 9, 1, 1, 1)
    tensors["text_module.fc2.weight"] = tensors["text_module.fc2.weight"].t().contiguous()
    tensors["conv1.bn1.weight"] = torch.ones(8, dtype=torch.int64)
    tensors["mixed_5c.conv_b0.bn1.running_var"][0] = torch.nan
    tensors["gating.fc.bias"][1] = -torch.inf
    text = _refusal(_saved(tmp_path, tensors), vocabulary)
    for line in (
        "weights.pth does not fit the towers:",
        "missing: fc.bias (16,)",
        "missing: mixed_4c.gating_b2.fc.weight (8, 8)",
        "missing: text_module.fc1.bias (256,)",
        "surplus: extra.weight (2, 3)",
        "wrong shape: conv_2b.conv1.weight (8, 9, 1, 1, 1), expected (8, 8, 1, 1, 1)",
        "wrong shape: text_module.fc2.weight (256, 16), expected (16, 256)",
        "wrong dtype: conv1.bn1.weight is int64, expected a float",
        "not finite: mixed_5c.conv_b0.bn1.running_var holds NaN or infinity",
        "not finite: gating.fc.bias holds NaN or infinity",
    ):
        assert line in text
    assert text.count("\n") == 9, "one line a problem, and no other"


def test_a_vocabulary_of_another_model_is_refused(tensors: Tensors, tmp_path: Path) -> None:
    vocabulary = tmp_path / "dict.npy"
    np.save(vocabulary, np.array([*WORDS, "extra"]))
    text = _refusal(_saved(tmp_path, tensors), vocabulary)
    assert f"{vocabulary} has 6 words, which needs a table of 7 rows; the checkpoint's has 6" in text
    assert "belongs to another model" in text


def test_tensors_without_plain_values_are_refused(tensors: Tensors, vocabulary: Path, tmp_path: Path) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].to_sparse()
    tensors["fc.bias"] = torch.empty(16, device="meta")
    text = _refusal(_saved(tmp_path, tensors), vocabulary)
    assert "no plain values: fc.weight is sparse or has no data; save dense tensors" in text
    assert "no plain values: fc.bias" in text


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of the byte that says it
def test_a_checkpoint_with_a_changed_byte_is_refused_or_loads_but_never_fails_otherwise(tmp_path: Path) -> None:
    path = _saved(tmp_path, {})
    generator = np.random.default_rng(0)
    refused = 0
    for zipped in (True, False):
        torch.save({"a": torch.rand(3), "b": torch.rand(2, 2)}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(300):
            changed = bytearray(whole)
            changed[generator.integers(len(whole))] = generator.integers(256)
            path.write_bytes(changed)
            try:
                read_tensors(path)
            except CheckpointError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(
    form: str, tensors: Tensors, vocabulary: Path, tmp_path: Path
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    content = {**tensors, "fc.bias": Payload(canary)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": Payload(canary)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    text = _refusal(path, vocabulary)
    assert f"{path} is refused: it holds " in text
    assert "weights_only" not in text, "torch's own advice is to load it without the safeguard"
    assert "Save model.state_dict() alone" in text
    assert not canary.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_checkpoint_is_refused_at_every_length(
    form: str, tensors: Tensors, vocabulary: Path, tmp_path: Path
) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in (1, 2, 7, 8, 60, 1000, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        text = _refusal(path, vocabulary)
        assert str(path) in text
        assert "truncated" in text or "is refused" in text


def test_files_that_are_no_files_are_named(vocabulary: Path, tmp_path: Path) -> None:
    missing, empty, prose = tmp_path / "none.pth", tmp_path / "empty.pth", tmp_path / "prose.pth"
    assert _refusal(missing, vocabulary) == f"weights file {missing} does not exist"
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    assert _refusal(folder, vocabulary) == f"weights file {folder} is not a file"
    empty.touch()
    assert _refusal(empty, vocabulary) == f"weights file {empty} is empty (0 bytes); fetch it again"
    prose.write_text("<html>404 Not Found</html>\n")
    assert f"{prose} is refused" in _refusal(prose, vocabulary)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "holds no state dict (a Tensor); save model.state_dict() instead"),
        ({}, "holds no state dict (a dict)"),
        ({"fc.weight": torch.zeros(1), "epoch": 3}, "holds entries that are not tensors: epoch"),
        ({"state_dict": {"fc.weight": [1.0]}}, "holds entries that are not tensors: fc.weight"),
    ],
)
def test_other_content_is_refused(content: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(_saved(tmp_path, content))
    assert said in str(caught.value)


def test_an_old_torch_is_not_trusted_with_a_pickle(
    tensors: Tensors, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, safe = _saved(tmp_path, tensors), tmp_path / "weights.safetensors"
    save_file(tensors, safe)
    for version, accepted in (("2.9.1+cu128", False), ("1.13.0", False), ("2.10.0", True), ("3.0.0a0+git1", True)):
        monkeypatch.setattr(torch, "__version__", version)
        if accepted:
            assert load_towers(path, vocabulary, CONFIG).words == WORDS
            continue
        text = _refusal(path, vocabulary)
        assert f"torch {version} is installed" in text
        assert "CVE-2026-24747" in text
        assert 'pip install "torch>=2.10"' in text
        assert load_towers(safe, vocabulary, CONFIG).words == WORDS, "safetensors needs no unpickler"


def test_half_precision_checkpoints_load_as_fp32(tensors: Tensors, vocabulary: Path, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        loaded = load_towers(_saved(tmp_path, cast), vocabulary, CONFIG)
        assert {value.dtype for value in loaded.video.parameters()} == {torch.float32}
        expected = tensors["fc.weight"].to(dtype).to(torch.float32)
        assert torch.equal(loaded.video.fc.weight, expected)


def test_step_counters_may_be_absent(towers: Towers, tensors: Tensors, vocabulary: Path, tmp_path: Path) -> None:
    without = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(without) < len(tensors)
    assert load_towers(_saved(tmp_path, without), vocabulary, CONFIG).digest() == towers.digest()


def test_digest_changes_with_one_weight_or_one_word(towers: Towers, tensors: Tensors, tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", "utf-8")
    digests = {towers.digest()}
    for name in ("mixed_5c.conv_b3_b.bn1.running_var", "text_module.word_embd.weight", "conv1.conv1.weight"):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[0] += 1e-3
        digests.add(load_towers(_saved(tmp_path, changed), vocabulary, CONFIG).digest())
    weights = _saved(tmp_path, tensors)
    assert load_towers(weights, vocabulary, CONFIG).digest() == towers.digest(), "the vocabulary's form does not matter"
    vocabulary.write_text("\n".join([*WORDS[:-1], "dont"]), "utf-8")
    digests.add(load_towers(weights, vocabulary, CONFIG).digest())
    vocabulary.write_text("\n".join([*WORDS[1:], WORDS[0]]), "utf-8")
    digests.add(load_towers(weights, vocabulary, CONFIG).digest())
    assert len(digests) == 6
