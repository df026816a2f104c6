"""Opening, reading and verifying bundles, whole and damaged ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import milnce
from helpers.tiny_bundle import WORDS, write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import BundleError, BundleNotFoundError, BundleVersionError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.tiny_bundle import Tiny

FILES = [
    "manifest.json",
    "vocabulary.txt",
    "video-uint8-fp32.onnx",
    "video-uint8-fp16.onnx",
    "video-float32-fp32.onnx",
    "video-float32-fp16.onnx",
    "text-fp32.onnx",
    "text-fp16.onnx",
    "projection-fp32.onnx",
]


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_bundle_holds_the_files_of_its_manifest_and_no_more(tiny: Tiny) -> None:
    assert sorted(path.name for path in tiny.path.iterdir()) == sorted(FILES)


def test_graphs_are_found_by_module_precision_and_form(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.path)
    assert bundle.graph("video").file == "video-uint8-fp32.onnx"
    assert bundle.graph("video", precision="fp16", input_form="float32").file == "video-float32-fp16.onnx"
    assert bundle.graph("text", precision="fp16").file == "text-fp16.onnx"
    assert repr(bundle) == f"Bundle('tiny' at {str(tiny.path)!r}, 7 graphs)"


def test_a_graph_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", precisions=["fp32"], input_forms=["uint8"], modules=["video", "text"])
    bundle = Bundle.open(tmp_path / "b")
    with pytest.raises(BundleError, match="no graph video float32 fp32; it has: video uint8 fp32, text tokens fp32"):
        bundle.graph("video", input_form="float32")
    with pytest.raises(InputError, match="module 'audio' given; modules are video, text, projection"):
        bundle.graph("audio")
    with pytest.raises(InputError, match="precision 'bf16' given; graphs are fp32, fp16, int8"):
        bundle.graph("video", precision="bf16")


def test_the_tokenizer_has_the_words_and_length_of_the_bundle(tmp_path: Path) -> None:
    words = [*WORDS, "line\u2028separator", "carriage\rreturn", "two words", ""]
    write_tiny_bundle(tmp_path / "b", words=words, max_words=20)
    tokenizer = Bundle.open(tmp_path / "b").tokenizer()
    assert len(tokenizer) == len(words)
    assert all(word in tokenizer for word in words)
    assert tokenizer("café tomato")[0, :3].tolist() == [WORDS.index("café") + 1, WORDS.index("tomato") + 1, 0]
    assert tokenizer.max_words == 20


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_found_and_the_file_named(copied: Path, name: str, place: str) -> None:
    data = bytearray((copied / name).read_bytes())
    index = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
    if name == "manifest.json" and place != "first":
        index = data.index(b'"sha256": "', index if place == "middle" else 0) + 12
    data[index] ^= 1
    (copied / name).write_bytes(data)
    # A changed digest in the manifest shows in the file that it belongs to.
    named = re.escape(name) if name != "manifest.json" or place == "first" else r"\.(onnx|txt) was changed or damaged"
    with pytest.raises(BundleError, match=named):
        Bundle.open(copied).verify()


@pytest.mark.parametrize("name", ["manifest.json", "vocabulary.txt", "video-uint8-fp32.onnx", "text-fp32.onnx"])
def test_load_refuses_a_changed_file(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[0] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BundleError, match=re.escape(str(copied / name))):
        milnce.load(copied)


def test_verify_names_every_wrong_file(copied: Path) -> None:
    (copied / "text-fp16.onnx").unlink()
    (copied / "projection-fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        Bundle.open(copied).verify()
    text = str(caught.value)
    assert text.startswith("2 files of the bundle are wrong:")
    assert f"{copied / 'text-fp16.onnx'} cannot be read (No such file or directory); export the bundle again" in text
    assert f"{copied / 'projection-fp32.onnx'} was changed or cut: it has 0 bytes" in text


def test_verify_passes_a_sound_bundle(copied: Path) -> None:
    Bundle.open(copied).verify()


def test_read_gives_the_hashed_bytes(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    assert hashlib.sha256(bundle.read(graph)).hexdigest() == graph.sha256


def test_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in [
        (tmp_path / "none", "there is no such folder"),
        (tmp_path, "the folder holds no manifest.json"),
        (tmp_path / "file", "it is a file; give the bundle's folder"),
    ]:
        with pytest.raises(BundleNotFoundError, match=re.escape(f"{reason}. Make one with: milnce export --weights")):
            Bundle.open(path)


def test_a_newer_bundle_is_refused_by_name(copied: Path) -> None:
    rewrite_manifest(copied, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(BundleVersionError, match=re.escape(f"{copied / 'manifest.json'} is of format 2")):
        Bundle.open(copied)


def test_a_link_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    shutil.move(copied / "text-fp32.onnx", outside)
    (copied / "text-fp32.onnx").symlink_to(outside)
    bundle = Bundle.open(copied)
    with pytest.raises(BundleError, match=r"text-fp32\.onnx is a link that leaves the bundle's folder"):
        bundle.read(bundle.graph("text"))


def test_a_link_to_the_folder_itself_is_fine(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied)
    Bundle.open(tmp_path / "link").verify()


def test_a_loop_of_links_is_refused(copied: Path) -> None:
    (copied / "text-fp32.onnx").unlink()
    (copied / "text-fp32.onnx").symlink_to("text-fp32.onnx")
    bundle = Bundle.open(copied)
    with pytest.raises(BundleError, match=r"text-fp32\.onnx"):
        bundle.read(bundle.graph("text"))


@pytest.mark.timeout(20)
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(copied: Path) -> None:
    bundle = Bundle.open(copied)
    for make in (os.mkfifo, os.mkdir):
        (copied / "text-fp32.onnx").unlink()
        make(copied / "text-fp32.onnx")
        with pytest.raises(BundleError, match=r"text-fp32\.onnx (is not a plain file|cannot be read)"):
            bundle.read(bundle.graph("text"))


def test_a_huge_manifest_is_not_read(copied: Path) -> None:
    with (copied / "manifest.json").open("r+b") as file:
        file.truncate(2**34)  # sparse: takes no space
    with pytest.raises(BundleError, match=r"manifest\.json was changed or cut: it has 17179869184 bytes, at most"):
        Bundle.open(copied)


def test_a_vocabulary_of_another_length_is_refused(copied: Path) -> None:
    rewrite_manifest(copied, lambda manifest: manifest["vocabulary"].update(words=7))
    with pytest.raises(BundleError, match=rf"vocabulary\.txt has {len(WORDS)} words; the manifest says 7"):
        Bundle.open(copied).tokenizer()


def test_a_vocabulary_that_is_not_utf8_is_refused(copied: Path) -> None:
    data = b"\xff\n"
    (copied / "vocabulary.txt").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    rewrite_manifest(copied, lambda manifest: manifest["vocabulary"].update(words=1, sha256=digest))
    with pytest.raises(BundleError, match=r"vocabulary\.txt is not UTF-8"):
        Bundle.open(copied).tokenizer()
