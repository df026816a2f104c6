"""Folders for other systems: whole or not at all, and nothing of anybody else's is ever replaced."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import BundleError, OutputError
from milnce_convert.host_folder import (
    RECORD_FILE,
    check_destination,
    folder_record,
    new_folder,
    vocabulary_bytes,
    write_file,
)


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("host") / "tiny"
    write_tiny_bundle(path)
    return Bundle.open(path)


def make(destination: Path, bundle: Bundle, content: str, *, kind: str = "triton", overwrite: bool = False) -> None:
    with new_folder(destination, kind, overwrite=overwrite) as folder:
        write_file(folder / "sub" / "content.txt", content.encode())
        write_file(folder / RECORD_FILE, folder_record(bundle, kind, extra=[1]))


def test_a_folder_is_made_with_its_parents_and_can_be_read_by_servers(tmp_path: Path, bundle: Bundle) -> None:
    make(tmp_path / "deep" / "er" / "folder", bundle, "new")
    folder = tmp_path / "deep" / "er" / "folder"
    assert (folder / "sub" / "content.txt").read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    record = json.loads((folder / RECORD_FILE).read_bytes())
    assert record["kind"] == "triton"
    assert record["bundle"]["model_digest"] == bundle.manifest.model_digest
    assert record["extra"] == [1]


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path: Path, bundle: Bundle) -> None:
    destination = tmp_path / "folder"
    make(destination, bundle, "old")
    with pytest.raises(OutputError, match=r"exists already; .*--overwrite"):
        make(destination, bundle, "new")
    make(destination, bundle, "new", overwrite=True)
    assert (destination / "sub" / "content.txt").read_text(encoding="utf-8") == "new"
    with pytest.raises(OutputError, match="no deepstream folder that milnce wrote"):
        make(destination, bundle, "other", kind="deepstream", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("record", [None, b"[]", b"no JSON", b"{}"])
def test_what_milnce_did_not_write_is_kept(tmp_path: Path, bundle: Bundle, record: bytes | None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("keep", encoding="utf-8")
    if record is not None:
        (tmp_path / "mine" / RECORD_FILE).write_bytes(record)
    with pytest.raises(OutputError, match="no triton folder that milnce wrote"):
        make(tmp_path / "mine", bundle, "new", overwrite=True)
    assert (tmp_path / "mine" / "keep.txt").read_text(encoding="utf-8") == "keep"


def test_a_link_is_not_replaced(tmp_path: Path, bundle: Bundle) -> None:
    make(tmp_path / "real", bundle, "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="not overwritten"):
        check_destination(tmp_path / "link", "triton", overwrite=True)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_exception_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "a" / "b", "triton", overwrite=False) as folder:
            write_file(folder / "content.txt", b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_said(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        make(tmp_path / "file" / "folder", bundle, "new")


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved_in(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "folder"
    make(destination, bundle, "old")
    rename = Path.rename

    def fail_to_move_in(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and not self.name.endswith("-old") and target == destination:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_move_in)
    with pytest.raises(OutputError, match="No space left on device"):
        make(destination, bundle, "new", overwrite=True)
    assert (destination / "sub" / "content.txt").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_word_list_that_changes_while_it_is_read_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle.path / "vocabulary.txt"
    assert vocabulary_bytes(bundle) == path.read_bytes()
    monkeypatch.setattr(Bundle, "tokenizer", lambda _self: path.write_bytes(b"other\n"))
    with pytest.raises(BundleError, match="was changed while it was read"):
        vocabulary_bytes(bundle)
