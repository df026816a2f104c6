"""The strict reader of manifest.json, also against made-up input."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milnce.errors import BundleError, BundleVersionError
from milnce.manifest import Manifest, decode, encode

if TYPE_CHECKING:
    from helpers.tiny_bundle import Tiny

SHA = "0" * 64
AXES = {
    "batch": {"name": "batch", "min": 1, "max": None, "multiple_of": 1},
    "words": {"name": "words", "min": 1, "max": None, "multiple_of": 1},
}
TEXT_GRAPH: dict[str, Any] = {
    "module": "text",
    "input_form": "tokens",
    "precision": "fp32",
    "file": "text-fp32.onnx",
    "sha256": SHA,
    "bytes": 10,
    "opset": 20,
    "inputs": [{"name": "tokens", "dtype": "int64", "shape": [AXES["batch"], AXES["words"]]}],
    "outputs": [{"name": "text_embedding", "dtype": "float32", "shape": [AXES["batch"], 8]}],
    "parity": {"cosine": 1.0},
}
MANIFEST: dict[str, Any] = {
    "format": "milnce-bundle",
    "format_version": 1,
    "name": "tiny",
    "model_digest": SHA,
    "graphs": [TEXT_GRAPH],
    "vocabulary": {"file": "vocabulary.txt", "sha256": SHA, "words": 3, "max_words": 16},
    "sampling": {"preset": "milnce-native", "size": 224, "frames": 32},
    "made": {"tool": "milnce"},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the manifest with the field at `path`, such as "graphs.0.file", set to `value`."""
    manifest = copy.deepcopy(MANIFEST)
    *parents, last = path.split(".")
    place: Any = manifest
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    return manifest


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = Manifest.from_json(MANIFEST)
    assert manifest.to_json() == MANIFEST
    assert decode(encode(manifest, source="m"), source="m") == manifest


def test_the_manifest_of_a_written_bundle_reads_back(tiny: Tiny) -> None:
    data = (tiny.path / "manifest.json").read_bytes()
    manifest = decode(data, source="m")
    assert json.loads(data) == manifest.to_json()
    assert [str(graph) for graph in manifest.graphs][:2] == [
        "video uint8 fp32 (video-uint8-fp32.onnx)",
        "video float32 fp32 (video-float32-fp32.onnx)",
    ]


@pytest.mark.parametrize("version", [2, 999])
def test_a_newer_format_is_refused_politely(version: int) -> None:
    # A newer release may have changed every other field, so nothing else is looked at.
    newer = {"format": "milnce-bundle", "format_version": version, "surprise": 1}
    text = f"folder/manifest.json is of format {version}; this release reads up to 1. Upgrade milnce"
    with pytest.raises(BundleVersionError, match=re.escape(text)):
        Manifest.from_json(newer, source="folder/manifest.json")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("format", "safetensors", "format is 'safetensors'; 'milnce-bundle' expected"),
        ("format_version", "1", "format_version is '1'; a whole number"),
        ("format_version", True, "format_version is True; a whole number"),
        ("format_version", 0, "format_version is 0"),
        ("name", "", "'name' must not be empty"),
        ("model_digest", "0" * 63, "'model_digest' must be 64 hex digits"),
        ("model_digest", "A" * 64, "'model_digest' must be 64 hex digits"),
        ("graphs", [], "there are no graphs"),
        ("graphs", {}, "'graphs' must be of type list, not {}"),
        ("graphs", [7], "graph 0 must be an object, not 7"),
        ("graphs", [TEXT_GRAPH, TEXT_GRAPH], "graph text/tokens/fp32 is listed twice"),
        ("graphs.0.bytes", 0, "'bytes' must be at least 1, not 0"),
        ("graphs.0.bytes", True, "'bytes' must be of type int, not True"),
        ("graphs.0.opset", "20", "'opset' must be of type int, not '20'"),
        ("graphs.0.precision", "int4", "'precision' must be one of fp32, fp16, int8, not 'int4'"),
        ("graphs.0.module", "audio", "module and input_form are 'audio'/'tokens'; known are video/uint8"),
        ("graphs.0.input_form", "uint8", "module and input_form are 'text'/'uint8'"),
        ("graphs.0.inputs", [], "inputs of text/tokens must be 'tokens' int64 of rank 2, not empty"),
        ("graphs.0.inputs.0.dtype", "int32", "must be 'tokens' int64 of rank 2, not 'tokens' int32 of rank 2"),
        ("graphs.0.outputs.0.shape", [8], "must be 'text_embedding' float32 of rank 2, not"),
        ("graphs.0.inputs.0.shape", [0, 1], "graph 0: inputs: a tensor's axis must be a positive integer"),
        ("graphs.0.parity", None, "'parity' must be of type dict, not None"),
        ("graphs.0.surprise", 1, "graph 0 has unknown fields: 'surprise'"),
        ("graphs.0.file", "vocabulary.txt", "file 'vocabulary.txt' is named twice"),
        ("graphs.0.file", "MANIFEST.JSON", "file 'manifest.json' is named twice"),
        ("vocabulary.words", -1, "vocabulary: 'words' must be at least 1, not -1"),
        ("sampling.preset", 3, "sampling: 'preset' must be of type str, not 3"),
        ("sampling.fps", 5, "sampling has unknown fields: 'fps'"),
        ("made", [], "'made' must be of type dict, not []"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: object, text: str) -> None:
    with pytest.raises(BundleError, match=re.escape(text)):
        Manifest.from_json(changed(path, value))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", "C:x", "a\n", "-rf", "x" * 300],
)
@pytest.mark.parametrize("field", ["graphs.0.file", "vocabulary.file"])
def test_file_names_stay_inside_the_folder(field: str, name: str) -> None:
    with pytest.raises(BundleError, match="'file' must be a plain file name inside the folder"):
        Manifest.from_json(changed(field, name))


def test_all_problems_come_in_one_error() -> None:
    broken = changed("graphs.0.sha256", "x")
    del broken["made"]
    broken["vocabulary"] = None
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(broken, source="there/manifest.json")
    assert str(caught.value).splitlines() == [
        "there/manifest.json is not a valid manifest; export the bundle again:",
        "  - graph 0: 'sha256' must be 64 hex digits, not 'x'",
        "  - the manifest: 'vocabulary' must be of type dict, not None",
        "  - vocabulary lacks 'file'",
        "  - vocabulary lacks 'sha256'",
        "  - vocabulary lacks 'words'",
        "  - vocabulary lacks 'max_words'",
        "  - the manifest lacks 'made'",
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"format": NaN}',
        b'{"format": "milnce-bundle", "format": "milnce-bundle"}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "not UTF-8", "NaN", "key twice", "deep", "huge number"],
)
def test_what_is_no_json_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"there/manifest\.json cannot be read as JSON"):
        decode(data, source="there/manifest.json")


def test_a_manifest_that_json_cannot_hold_is_not_written() -> None:
    manifest = Manifest.from_json(changed("made", {"when": float("inf")}))
    with pytest.raises(BundleError, match=r"m cannot be written as JSON"):
        encode(manifest, source="m")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PATHS = [
    *(key for key in MANIFEST),
    *(f"graphs.0.{key}" for key in TEXT_GRAPH),
    *(f"graphs.0.inputs.0.{key}" for key in ("name", "dtype", "shape")),
    *(f"graphs.0.inputs.0.shape.0.{key}" for key in AXES["batch"]),
    *(f"vocabulary.{key}" for key in MANIFEST["vocabulary"]),
    *(f"sampling.{key}" for key in MANIFEST["sampling"]),
]


@given(path=st.sampled_from(PATHS), value=JSON)
@example(path="graphs.0.inputs.0.shape.0.max", value=True)
@example(path="graphs.0.inputs.0.shape.0.max", value=1)
@settings(max_examples=400, deadline=None)
def test_any_value_in_any_field_is_read_or_refused(path: str, value: object) -> None:
    try:
        manifest = Manifest.from_json(changed(path, value))
    except BundleError as error:
        assert "manifest.json" in str(error)  # noqa: PT017 - either outcome is right, and each has its own rule
    else:
        assert json.loads(json.dumps(manifest.to_json())) == json.loads(json.dumps(changed(path, value)))


@given(value=JSON)
@example(value=[])
def test_any_json_is_refused_with_a_bundle_error(value: object) -> None:
    with pytest.raises(BundleError):
        decode(json.dumps(value).encode(), source="m")


@given(position=st.integers(min_value=0), byte=st.binary(min_size=0, max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_damage_of_the_bytes_is_read_or_refused(position: int, byte: bytes) -> None:
    data = encode(Manifest.from_json(MANIFEST), source="m")
    start = position % len(data)
    damaged = data[:start] + byte + data[start + 1 :]
    try:
        manifest = decode(damaged, source="m")
    except BundleError as error:
        assert str(error).startswith("m")  # noqa: PT017 - either outcome is right, and each has its own rule
    else:
        assert manifest.to_json() == json.loads(damaged)
