"""Training: batches that follow the seed, a run that goes on as if it had not been stopped, a bundle at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from milnce.errors import CheckpointError
from milnce.tokenizer import Tokenizer
from milnce_convert.checkpoint import load_towers
from milnce_convert.demo import curves
from milnce_convert.demo.batches import BatchMaker
from milnce_convert.demo.clips import SAMPLING
from milnce_convert.demo.concepts import Combination, combinations, vocabulary
from milnce_convert.demo.pool import ClipPool, make_pool
from milnce_convert.demo.training import History, Settings, Trainer

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Settings(seed=3, steps=4, batch_size=6, captions=2, width=0.05, embedding=16, word=8, hidden=16)


@pytest.fixture(scope="module")
def pool() -> ClipPool:
    """Clips of noise around a colour of their own: two of each of some combinations that are trained on."""
    shown = [combination for combination in combinations() if not combination.held_out][::3] * 2
    generator = np.random.default_rng(0)
    shape = (len(shown), SAMPLING.frames, SAMPLING.size, SAMPLING.size, 3)
    colours = generator.integers(0, 206, (len(shown), 1, 1, 1, 3), np.uint8)
    return ClipPool(generator.integers(0, 50, shape, np.uint8) + colours, tuple(shown))


def weights_of(trainer: Trainer) -> dict[str, Any]:
    return {**trainer.video.state_dict(), **trainer.text.state_dict()}


def test_a_batch_follows_seed_and_step(pool: ClipPool) -> None:
    def batches(seed: int) -> BatchMaker:
        return BatchMaker(pool, Tokenizer(vocabulary(), 16), seed=seed, size=8, captions=3)

    first, again, later, other = batches(1)(5), batches(1)(5), batches(1)(6), batches(2)(5)
    np.testing.assert_array_equal(first.clips, again.clips)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.clips != later.clips).any()
    assert (first.clips != other.clips).any()
    assert first.clips.shape == (8, 16, 64, 64, 3)
    assert first.tokens.shape == (8, 3, 16)
    assert (first.light > 0.8 / 255).all()


def test_a_batch_marks_the_clips_that_show_the_same(pool: ClipPool) -> None:
    make = BatchMaker(pool, Tokenizer(vocabulary(), 16), seed=0, size=120, captions=1)
    same = make(0).same
    assert same.diagonal().all()
    assert (same == same.T).all()
    assert same.sum() > len(same), "a batch this large shows something twice"


def test_captions_of_a_batch_belong_to_its_clips(pool: ClipPool) -> None:
    only = Combination("star", "purple", "left")
    one = ClipPool(pool.clips[:1], (only,))
    batch = BatchMaker(one, Tokenizer(vocabulary(), 16), seed=0, size=2, captions=4)(0)
    words = [{vocabulary()[token - 1] for token in row if token} for row in batch.tokens.reshape(-1, 16)]
    assert all("star" in row and row & {"purple", "violet"} and "left" in row for row in words)
    assert batch.same.all()


def test_a_stopped_run_goes_on_as_if_it_had_not_been(pool: ClipPool, tmp_path: Path) -> None:
    whole = Trainer(SMALL, pool)
    whole.run(lambda _: None, lambda: None, pause_steps=2)
    stopped = Trainer(SMALL, pool)
    stopped.step()
    stopped.step()
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = Trainer(SMALL, pool)
    resumed.restore(tmp_path / "checkpoint.pt")
    resumed.run(lambda _: None, lambda: None, pause_steps=2)
    assert resumed.history.loss == whole.history.loss
    assert len(whole.history.loss) == SMALL.steps
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(resumed)[name]), name


def test_a_checkpoint_of_other_settings_is_refused(pool: ClipPool, tmp_path: Path) -> None:
    Trainer(SMALL, pool).save(tmp_path / "checkpoint.pt")
    other = Trainer(Settings(**{**vars(SMALL), "steps": 9}), pool)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt was made with .*'steps': 4.* has .*'steps': 9"):
        other.restore(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_other_words_is_refused(pool: ClipPool, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pool)
    trainer.save(tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**state, "words": state["words"][:-1]}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt was trained on 68 words, and the captions now have 69"):
        trainer.restore(tmp_path / "checkpoint.pt")


def test_training_learns_a_batch_and_pauses_as_asked(pool: ClipPool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [0, 20, 45, 70]
    few = ClipPool(pool.clips[rows], tuple(pool.shown[row] for row in rows))
    trainer = Trainer(Settings(**{**vars(SMALL), "steps": 40, "learning_rate": 0.01}), few)
    batch = BatchMaker(few, trainer.tokenizer, seed=0, size=6, captions=2)(0)
    monkeypatch.setattr(trainer, "_batches", lambda _: batch)
    pauses = []
    trainer.run(lambda _: None, lambda: pauses.append(len(trainer.history.loss)), pause_steps=20)
    assert np.mean(trainer.history.loss[-5:]) < 0.4 * np.mean(trainer.history.loss[:5])
    assert pauses == [20, 40]


def test_captions_that_fit_are_no_negatives_in_a_step(pool: ClipPool) -> None:
    one = ClipPool(pool.clips[:3], (pool.shown[0],) * 3)
    assert Trainer(SMALL, one).step() == 0, "every caption of the batch fits every clip"


def test_a_run_stopped_in_a_pause_measures_when_it_goes_on(pool: ClipPool) -> None:
    trainer = Trainer(SMALL, pool)
    trainer.run(lambda _: None, lambda: None, pause_steps=2, stop=lambda: len(trainer.history.loss) == 2)
    assert len(trainer.history.loss) == 2
    pauses = []
    trainer.run(lambda _: None, lambda: pauses.append(len(trainer.history.loss)), pause_steps=2)
    assert pauses == [2, 4]


def test_recall_counts_what_ranks_above(pool: ClipPool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = combinations()[:10]
    few = ClipPool(pool.clips[:10], tuple(shown))
    trainer = Trainer(SMALL, few)
    video = np.eye(10, dtype=np.float32)
    text = video.copy()
    held_out = [combination.held_out for combination in shown].index(True)
    text[held_out] = np.roll(video[held_out], 1)  # one unseen combination is found second: by ties, not above
    text[held_out, held_out] = 0.5
    monkeypatch.setattr(trainer, "embed_video", lambda _: video)
    monkeypatch.setattr(trainer, "embed_text", lambda _: text)
    row = trainer.measure(few, [""] * 10)
    unseen = sum(combination.held_out for combination in shown)
    assert row["trained R@1"] == 100
    assert row["unseen R@1"] == pytest.approx(100 * (unseen - 1) / unseen)
    assert row["unseen R@5"] == 100


def test_weights_are_written_in_the_official_layout(pool: ClipPool, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pool)
    trainer.save_weights(tmp_path / "weights.pth", tmp_path / "words.txt")
    towers = load_towers(tmp_path / "weights.pth", tmp_path / "words.txt", SMALL.towers)
    assert towers.words == tuple(vocabulary())
    torch.testing.assert_close(towers.video.fc.weight, trainer.video.fc.weight, rtol=0, atol=0)
    torch.testing.assert_close(towers.text.fc1.weight, trainer.text.fc1.weight, rtol=0, atol=0)


def test_a_pool_is_made_once_and_anew_for_other_clips(tmp_path: Path) -> None:
    shown = combinations()[:3]
    counts: list[int] = []
    first = make_pool(tmp_path, "few", shown, seed=1, workers=1, on_clips=counts.append)
    made = (tmp_path / "few.npy").stat().st_mtime_ns
    again = make_pool(tmp_path, "few", shown, seed=1, workers=1, on_clips=counts.append)
    assert (tmp_path / "few.npy").stat().st_mtime_ns == made
    np.testing.assert_array_equal(first.clips, again.clips)
    assert counts == [3, 3]
    before = np.array(first.clips)
    other = make_pool(tmp_path, "few", shown, seed=2, workers=1)
    assert (np.array(other.clips) != before).any()
    assert other.clips.shape == (3, 16, 64, 64, 3)


def test_a_pool_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    shown = combinations()[:2]
    whole = np.array(make_pool(tmp_path, "few", shown, seed=1, workers=1).clips)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pool(tmp_path, "few", shown, seed=2, workers=1, on_clips=stop)
    np.testing.assert_array_equal(make_pool(tmp_path, "few", shown, seed=1, workers=1).clips, whole)


def test_curves_are_a_picture(tmp_path: Path) -> None:
    row = {"step": 2, "trained R@1": 10.0, "trained R@5": 20.0, "unseen R@1": 5.0, "unseen R@5": 15.0}
    curves.draw_curves(History([4.0, 3.0, 2.0], [row, {**row, "step": 3}]), tmp_path / "curves.png", "seed 0")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_command_stops_and_goes_on_and_leaves_a_bundle(tmp_path: Path) -> None:
    work = tmp_path / "work"
    command = [sys.executable, "-m", "milnce_convert.demo.train", "--work", str(work), "--clips", "1", "--threads", "2"]
    process = subprocess.Popen([*command, "--steps", "40"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = ""
    while "step 0 of 40" not in told:  # clips come first
        line = process.stderr.readline()
        assert line, told
        told += line
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    told += process.communicate(timeout=120)[1]
    assert process.returncode == 130, told
    assert "the same command goes on" in told
    steps = len(torch.load(work / "checkpoint.pt", weights_only=True)["history"]["loss"])
    assert 0 < steps < 40
    finished = subprocess.run([*command, "--steps", "40"], capture_output=True, text=True, check=True)
    assert f"going on from step {steps}" in finished.stderr
    manifest = json.loads((work / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["made"]["training"]["settings"]["steps"] == 40
    assert manifest["sampling"] == {"preset": "milnce-eval", "frames": 16, "size": 64}
    assert (work / "curves.png").exists()
    shown = [Combination(*names) for names in json.loads((work / "training.json").read_text(encoding="utf-8"))["shown"]]
    assert len(set(shown)) == 345
    assert not any(combination.held_out for combination in shown), "nothing unseen is trained on"
