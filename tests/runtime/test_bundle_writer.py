"""Writing a bundle: whole or not at all, and never over something else."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

import pytest

from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.bundle_writer import BundleWriter
from milnce.errors import BundleError, InputError, OutputError
from milnce.specs import Dimension, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHA = "0" * 64
SAMPLING = {"preset": "milnce-native", "size": 32, "frames": 4}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def add_text(writer: BundleWriter, model: bytes = b"model") -> None:
    batch, words = Dimension("batch", 1, None), Dimension("words", 1, None)
    writer.add_graph(
        module="text",
        input_form="tokens",
        precision="fp32",
        model=model,
        opset=20,
        inputs=[TensorSpec("tokens", "int64", (batch, words))],
        outputs=[TensorSpec("text_embedding", "float32", (batch, Dimension.fixed(8)))],
        parity={},
    )
    writer.add_vocabulary(["cut"], max_words=16)


def write(destination: Path, *, model: bytes = b"model", overwrite: bool = False) -> None:
    with BundleWriter(destination, overwrite=overwrite) as writer:
        add_text(writer, model)
        writer.commit(name="new", model_digest=SHA, sampling=SAMPLING, made={"tool": "tests"})


def attempt(destination: Path, action: Callable[[BundleWriter], object]) -> None:
    """Add a text graph and then do `action`, all inside a writer."""
    with BundleWriter(destination) as writer:
        add_text(writer)
        action(writer)


def commit(writer: BundleWriter, model_digest: str = SHA) -> None:
    writer.commit(name="new", model_digest=model_digest, sampling=SAMPLING, made={})


def fail_with(error: type[BaseException]) -> Callable[[BundleWriter], object]:
    def fail(_: BundleWriter) -> None:
        raise error

    return fail


def test_a_committed_bundle_opens_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path / "b")
    bundle = Bundle.open(tmp_path / "b")
    bundle.verify()
    assert bundle.manifest.name == "new"
    assert bundle.read(bundle.graph("text")) == b"model"
    assert names(tmp_path) == ["b"]


def test_the_folder_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    write(tmp_path / "b")
    (tmp_path / "other").mkdir()
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_missing_parents_are_made_and_removed_again_on_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path / "x" / "y" / "b", fail_with(KeyboardInterrupt))
    assert names(tmp_path) == []
    write(tmp_path / "x" / "y" / "b")
    assert Bundle.open(tmp_path / "x" / "y" / "b").manifest.name == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        attempt(tmp_path / "b", fail_with(error))
    assert names(tmp_path) == []


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        add_text(writer)
        assert len(names(tmp_path)) == 1  # the hidden sibling
    assert names(tmp_path) == []


def test_an_existing_destination_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(OutputError, match=r"b exists already; choose another folder, or overwrite it \(--overwrite\)"):
        write(tmp_path / "b")
    assert names(tmp_path) == ["b"]
    assert tmp_path.stat().st_mtime_ns == before


def test_overwrite_replaces_a_bundle(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    write(tmp_path / "b", overwrite=True)
    assert Bundle.open(tmp_path / "b").manifest.name == "new"
    assert names(tmp_path / "b") == ["manifest.json", "text-fp32.onnx", "vocabulary.txt"]
    assert names(tmp_path) == ["b"]


def test_overwrite_replaces_nothing_but_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name in ("home", "file", "link"):
        with pytest.raises(OutputError, match="exists and is not a bundle, so it is not overwritten"):
            write(tmp_path / name, overwrite=True)
    assert names(tmp_path) == ["file", "home", "link"]
    assert names(tmp_path / "home") == ["thesis.tex"]


def test_a_failed_overwrite_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "b")
    original = type(tmp_path).rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == tmp_path / "b" and not self.name.endswith("-old"):
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "b", overwrite=True)
    assert names(tmp_path) == ["b"]
    assert Bundle.open(tmp_path / "b").manifest.name == "tiny"


def test_a_destination_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def create_and_commit(writer: BundleWriter) -> None:
        (tmp_path / "b").mkdir()
        commit(writer)

    with pytest.raises(OutputError, match="b exists already"):
        attempt(tmp_path / "b", create_and_commit)
    assert names(tmp_path) == ["b"]


def test_a_parent_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the bundle cannot be written to .*file/b: Not a directory"):
        write(tmp_path / "file" / "b")
    # /proc refuses new folders to everyone, the superuser that runs tests in a container too.
    with pytest.raises(OutputError, match=r"the bundle cannot be written to /proc/b: "):
        write(tmp_path.__class__("/proc/b"))


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(tmp_path / "b")
    assert names(tmp_path) == []


def test_a_manifest_that_would_not_read_back_is_never_committed(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="'model_digest' must be 64 hex digits"):
        attempt(tmp_path / "b", partial(commit, model_digest="short"))
    assert names(tmp_path) == []


def test_the_same_graph_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File exists"):
        attempt(tmp_path / "b", add_text)
    assert names(tmp_path) == []


def test_a_vocabulary_is_needed_and_must_be_lines(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        with pytest.raises(InputError, match="needs a vocabulary: call add_vocabulary before commit"):
            writer.commit(name="new", model_digest=SHA, sampling=SAMPLING, made={})
        with pytest.raises(InputError, match="the vocabulary has no words"):
            writer.add_vocabulary([], max_words=16)
        with pytest.raises(InputError, match=r"word 1 of the vocabulary, 'b\\nc', holds a line end"):
            writer.add_vocabulary(["a", "b\nc"], max_words=16)
        with pytest.raises(InputError, match="cannot be written as UTF-8"):
            writer.add_vocabulary(["\ud800"], max_words=16)


def test_a_writer_outside_its_with_statement_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the writer is not open: use it in a with statement"):
        add_text(BundleWriter(tmp_path / "b"))
    with BundleWriter(tmp_path / "c") as writer:
        add_text(writer)
        writer.commit(name="new", model_digest=SHA, sampling=SAMPLING, made={})
        with pytest.raises(InputError, match="add nothing after commit"):
            writer.add_vocabulary(["cut"], max_words=16)
    Bundle.open(tmp_path / "c").verify()
