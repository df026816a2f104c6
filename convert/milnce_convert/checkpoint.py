"""Weights and vocabulary files to towers, checked name by name.

Nothing is executed on the way: `torch.load(weights_only=True)` with no fallback, `np.load(allow_pickle=False)`,
safetensors. Every problem of a checkpoint is reported at once.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from milnce.errors import CheckpointError
from milnce.platforms import install
from milnce_convert.towers import S3D, TextTower, TowersConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TEXT_PREFIX = "text_module."
_PREFIX = "module."  # what torch.nn.DataParallel puts before every name
_COUNTERS = "num_batches_tracked"  # BatchNorm's step counter: no part of inference, absent from old checkpoints

# weights_only's unpickler itself had memory corruption before 2.10 (CVE-2026-24747) and executed code before 2.6
# (CVE-2025-32434).
_SAFE_TORCH = (2, 10)

_LISTED = 30  # of the vocabulary's wrong entries, how many a message names


@dataclass(frozen=True)
class Towers:
    """Both towers with their vocabulary, ready to export.

    Attributes:
        video: The video tower, in eval mode.
        text: The text tower, in eval mode.
        words: The vocabulary in order; a word's id is its index + 1.
        config: The sizes of both.
    """

    video: S3D
    text: TextTower
    words: tuple[str, ...]
    config: TowersConfig

    def __post_init__(self) -> None:
        """Refuse a vocabulary that does not fit the table: OpenVINO reads rows that are not there as zeros."""
        rows = self.text.word_embd.num_embeddings
        if rows != len(self.words) + 1:
            raise CheckpointError(f"{len(self.words)} words need a table of {len(self.words) + 1} rows; it has {rows}")

    def digest(self) -> str:
        """Return the sha256 of every weight and word: the same for every export of the same model."""
        total = hashlib.sha256()
        for name, tensor in sorted(_named_weights(self.video, self.text).items()):
            if not name.endswith(_COUNTERS):
                array = np.ascontiguousarray(tensor.detach().cpu().numpy().astype("<f4"))
                total.update(f"{name}\0{array.shape}\0".encode())
                total.update(array.tobytes())
        total.update("\n".join(self.words).encode())
        return total.hexdigest()


def load_towers(weights: Path, vocabulary: Path, config: TowersConfig | None = None) -> Towers:
    """Read a checkpoint and its word list into towers.

    Args:
        weights: `.pth`/`.pt` (a bare state dict, or one under the key "state_dict", names with or without
            "module." before them) or `.safetensors`.
        vocabulary: `.npy` of strings, or `.txt` with one word a line.
        config: Sizes to expect; by default the published widths, with the stem the checkpoint has and the
            vocabulary's number of rows.

    Raises:
        CheckpointError: naming the file and listing every missing, surplus, wrongly shaped, wrongly typed and
            non-finite tensor.
    """
    words = read_vocabulary(vocabulary)
    tensors = read_tensors(weights)
    if config is None:
        stem = tensors.get("conv1.conv1.weight")
        plain_stem = stem is not None and tuple(stem.shape[1:]) == (3, 3, 7, 7)
        config = TowersConfig.scaled(rows=len(words) + 1, space_to_depth=not plain_stem)
    video, text = S3D(config.video), TextTower(config.text)
    problems = _problems(_named_weights(video, text), tensors)
    table = tensors.get(f"{TEXT_PREFIX}word_embd.weight")
    if table is not None and table.ndim == 2 and table.shape[0] != len(words) + 1:  # noqa: PLR2004  a table of rows
        problems.append(
            f"vocabulary: {vocabulary} has {len(words)} words, which needs a table of {len(words) + 1} rows; "
            f"the checkpoint's has {table.shape[0]}: it belongs to another model"
        )
    if problems:
        raise CheckpointError(f"{weights} does not fit the towers:\n  " + "\n  ".join(problems))
    floats = {name: tensor.to(torch.float32) for name, tensor in tensors.items() if not name.endswith(_COUNTERS)}
    video.load_state_dict(
        {name: value for name, value in floats.items() if not name.startswith(TEXT_PREFIX)}, strict=False
    )
    text.load_state_dict(
        {name[len(TEXT_PREFIX) :]: value for name, value in floats.items() if name.startswith(TEXT_PREFIX)},
        strict=False,
    )
    return Towers(video.eval(), text.eval(), words, config)


def _named_weights(video: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer under the official checkpoint's names."""
    return {**video.state_dict(), **{f"{TEXT_PREFIX}{name}": value for name, value in text.state_dict().items()}}


def _problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return one line a tensor that is missing, surplus, wrongly shaped, not a float, or not finite."""
    names = [name for name in expected if not name.endswith(_COUNTERS)]
    lines = [f"missing: {name} {tuple(expected[name].shape)}" for name in names if name not in found]
    lines += [
        f"surplus: {name} {tuple(tensor.shape)}"
        for name, tensor in found.items()
        if name not in expected and not name.endswith(_COUNTERS)
    ]
    for name in names:
        tensor = found.get(name)
        if tensor is None:
            continue
        if tensor.shape != expected[name].shape:
            lines.append(f"wrong shape: {name} {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        elif tensor.layout != torch.strided or tensor.is_meta:
            lines.append(f"no plain values: {name} is sparse or has no data; save dense tensors")
        elif not tensor.is_floating_point():
            lines.append(f"wrong dtype: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected a float")
        elif not bool(torch.isfinite(tensor).all()):
            lines.append(f"not finite: {name} holds NaN or infinity")
    return lines


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors by name, the "module." prefix and a "state_dict" key taken off.

    Raises:
        CheckpointError: if the file is missing, truncated, not a checkpoint, or holds anything but tensors.
    """
    _require_file(path, "weights")
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(
            f"{path} holds no state dict (a {type(loaded).__name__}); save model.state_dict() instead"
        )
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path} holds entries that are not tensors: {', '.join(others)}; save model.state_dict() instead"
        )
    prefixed = all(str(name).startswith(_PREFIX) for name in loaded)
    return {str(name)[len(_PREFIX) :] if prefixed else str(name): value for name, value in loaded.items()}


def _require_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"{kind} file {path} {'is not a file' if path.exists() else 'does not exist'}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{kind} file {path} is empty (0 bytes); fetch it again")


def _load_torch(path: Path) -> Any:  # noqa: ANN401  whatever the file holds; the caller looks
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_TORCH:
        raise CheckpointError(
            f"torch {torch.__version__} is installed; reading a .pth safely needs torch >= 2.10 (CVE-2026-24747): "
            'pip install "torch>=2.10", or give the weights as .safetensors'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old file formats, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Of torch's message only the name: the rest of it advises to load without the safeguard.
        name = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.\w+)", str(error))
        what = f"it holds a {name[1]}" if name else "it holds objects other than tensors, or is no checkpoint"
        raise CheckpointError(
            f"{path} is refused: {what}. Save model.state_dict() alone, or as .safetensors"
        ) from error
    except (
        EOFError,
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
        zipfile.BadZipFile,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise CheckpointError(f"{path} is truncated or is no checkpoint ({reason}); fetch it again") from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError  # noqa: PLC0415  only for this file format
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors: {install('convert')}") from error
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or is no safetensors file ({error}); fetch it again") from error


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Read the word list: `.npy` of strings (the official `s3d_dict.npy`) or `.txt`, one word a line.

    Raises:
        CheckpointError: if the file is missing, truncated, of objects (which would need pickle), or has entries that
            are not single words.
    """
    _require_file(path, "vocabulary")
    try:
        words = _read_word_lines(path) if path.suffix == ".txt" else _read_word_array(path)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error}); save the word list as UTF-8") from error
    _check_words(path, words)
    return tuple(words)


def _read_word_lines(path: Path) -> list[str]:
    # Not str.splitlines, which also splits at U+2028 and its like: a row too many would shift every later word's id.
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


def _read_word_array(path: Path) -> list[str]:
    try:
        # Mapped, so that a header that promises more than the file holds is refused before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise CheckpointError(
                f"{path} is refused: it is not a plain array of strings and would need pickle, which can run code. "
                "Re-save it: np.save(path, np.array(list_of_words, dtype=str))"
            ) from error
        raise CheckpointError(f"{path} is truncated or is no .npy file ({error}); fetch it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "US" or array.ndim != 1 or array.size == 0:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise CheckpointError(f"{path} holds {found}; a one-dimensional array of strings is expected")
    if array.dtype.kind == "S":
        return [bytes(word).decode("utf-8") for word in array]
    return [str(word) for word in array]


def _check_words(path: Path, words: Sequence[str]) -> None:
    wrong = [f"{index}: {word!r}" for index, word in enumerate(words) if "\n" in word or "\r" in word]
    if wrong:
        raise CheckpointError(f"{path}: words must not hold line breaks; entries {', '.join(wrong[:_LISTED])}")
