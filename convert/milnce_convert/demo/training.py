"""The training loop of the demo model: one thread of control, checkpoints, a history of loss and recall."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milnce.errors import CheckpointError
from milnce.tokenizer import Tokenizer
from milnce_convert.checkpoint import TEXT_PREFIX
from milnce_convert.demo.batches import BatchMaker
from milnce_convert.demo.concepts import vocabulary
from milnce_convert.demo.loss import mil_nce
from milnce_convert.towers import S3D, TextTower, TowersConfig
from milnce_convert.towers.config import TextConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce_convert.demo.pool import ClipPool

MAX_WORDS = 16
_EVALUATION_BATCH = 36


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, besides the machine's rounding.

    Attributes:
        seed: Of weights, clips and batches.
        steps: Batches in all.
        clips: Training clips of each combination.
        batch_size: Clips a batch.
        captions: Positive captions of each clip.
        learning_rate: At its highest, after `warmup` of the steps; a cosine to zero follows.
        warmup: Share of the steps.
        weight_decay: AdamW's.
        width: Factor on the published channel counts.
        embedding: Width of the joint space.
        word: Width of a word vector.
        hidden: Width of the text tower's hidden layer.
    """

    seed: int = 0
    steps: int = 5000
    clips: int = 16
    batch_size: int = 32
    captions: int = 4
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    width: float = 0.25
    embedding: int = 128
    word: int = 64
    hidden: int = 256

    @property
    def towers(self) -> TowersConfig:
        """Sizes of the towers."""
        rows = len(vocabulary()) + 1
        video = TowersConfig.scaled(self.width, rows=rows, embedding=self.embedding).video
        return TowersConfig(video, TextConfig(rows, self.word, self.hidden, self.embedding))


@dataclass
class History:
    """What a run has measured: a loss a step, recall now and then."""

    loss: list[float] = field(default_factory=list)
    recall: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class Trainer:
    """Towers, optimiser and history of one run, at step `len(history.loss)`."""

    def __init__(self, settings: Settings, pool: ClipPool) -> None:
        torch.manual_seed(settings.seed)
        config = settings.towers
        self.settings = settings
        self.tokenizer = Tokenizer(vocabulary(), MAX_WORDS)
        # The video tower's convolutions are about twice as fast on a CPU with channels last.
        self.video: S3D = S3D(config.video).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.text = TextTower(config.text)
        with torch.no_grad():
            # Scores of the first batches near zero: the loss starts at chance, not in the tens.
            self.video.fc.weight.mul_(0.3)
            self.text.fc2.weight.mul_(0.3)
        parameters = [*self.video.parameters(), *self.text.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, settings.learning_rate, total_steps=settings.steps, pct_start=settings.warmup
        )
        self.history = History()
        self._batches = BatchMaker(
            pool, self.tokenizer, seed=settings.seed, size=settings.batch_size, captions=settings.captions
        )

    def step(self) -> float:
        """Train on the next batch; return its loss."""
        batch = self._batches(len(self.history.loss))
        self.video.train()
        # Permuting gives the channels-last layout without a copy.
        clips = (
            torch.from_numpy(batch.clips).permute(0, 4, 1, 2, 3)
            * torch.from_numpy(batch.light)[:, None, None, None, None]
        )
        tokens = torch.from_numpy(batch.tokens)
        video = self.video(clips.clamp_(max=1))["video_embedding"]
        text = self.text(tokens.flatten(0, 1))["text_embedding"].unflatten(0, tokens.shape[:2])
        loss = mil_nce(video, text, torch.from_numpy(batch.same))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {len(self.history.loss)}; lower the learning rate")
        self.history.loss.append(value)
        return value

    def measure(self, pool: ClipPool, sentences: list[str]) -> dict[str, float]:
        """Return R@1 and R@5 in % of sentence i for clip i among all clips of the pool, by split; keep them.

        For the curve only: the model's figures come from `milnce eval` on other clips.
        """
        similarity = self.embed_text(sentences) @ self.embed_video(pool.clips).T
        rank = (similarity > np.diagonal(similarity)[:, None]).sum(axis=1)
        held_out = np.array([combination.held_out for combination in pool.shown])
        row: dict[str, float] = {"step": len(self.history.loss)}
        for name, mask in (("trained", ~held_out), ("unseen", held_out)):
            row.update({f"{name} R@{k}": 100 * float((rank[mask] < k).mean()) for k in (1, 5)})
        self.history.recall.append(row)
        return row

    @torch.inference_mode()
    def embed_video(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (clips, embedding) of uint8 (clips, frames, size, size, 3)."""
        self.video.eval()
        parts = []
        for start in range(0, len(clips), _EVALUATION_BATCH):
            batch = torch.from_numpy(np.array(clips[start : start + _EVALUATION_BATCH]))
            parts.append(self.video(batch.permute(0, 4, 1, 2, 3).float() / 255)["video_embedding"].numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def embed_text(self, sentences: list[str]) -> NDArray[np.float32]:
        """Return float32 (sentences, embedding)."""
        tokens = torch.from_numpy(self.tokenizer(sentences))
        embedding: NDArray[np.float32] = self.text(tokens)["text_embedding"].numpy()
        return embedding

    def save_weights(self, weights: Path, words: Path) -> None:
        """Write the towers as a checkpoint and a word list in the official layout, for `export_bundle`."""
        tensors = {
            **self.video.state_dict(),
            **{f"{TEXT_PREFIX}{name}": value for name, value in self.text.state_dict().items()},
        }
        torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)
        words.write_text("".join(f"{word}\n" for word in vocabulary()), encoding="utf-8")

    def save(self, path: Path) -> None:
        """Write everything that `restore` needs; the file is replaced at once or not at all."""
        state = {
            "settings": asdict(self.settings),
            "words": vocabulary(),
            "video": self.video.state_dict(),
            "text": self.text.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": asdict(self.history),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)  # noqa: PTH105  # Path.replace is the same call

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: if it was made with other settings or other words.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise CheckpointError(
                f"{path} was made with {state['settings']}; this run has {asdict(self.settings)}. Give the same "
                "settings to go on with it, or another --work folder to begin anew"
            )
        if state["words"] != vocabulary():
            raise CheckpointError(
                f"{path} was trained on {len(state['words'])} words, and the captions now have {len(vocabulary())} or "
                "others; take another --work folder to begin anew"
            )
        self.video.load_state_dict(state["video"])
        self.text.load_state_dict(state["text"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = History(**state["history"])

    def run(
        self,
        on_step: Callable[[float], None],
        on_pause: Callable[[], None],
        *,
        pause_steps: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end, or to the first step after which `stop` says so.

        Calls `on_pause`, which measures, after every `pause_steps` steps and after the last; first of all if the run
        was stopped in such a pause before it had measured.
        """
        while not stop():
            done = len(self.history.loss)
            due = done > 0 and (done % pause_steps == 0 or done == self.settings.steps)
            if due and (not self.history.recall or self.history.recall[-1]["step"] != done):
                on_pause()
            if done == self.settings.steps:
                return
            on_step(self.step())
