"""manifest.json: what a bundle says about itself, and the strict reader of it.

The reader trusts nothing: every field is checked, and everything that is wrong is reported in one error.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from milnce.errors import BundleError, BundleVersionError
from milnce.json_fields import Fields, brief, repeated, strict_json
from milnce.specs import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = "milnce-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"

PRECISIONS = ("fp32", "fp16", "int8")

# What each graph takes and gives: name, dtype and rank. This is the interface between exporter and runtime.
_Signature = tuple[tuple[str, str, int], ...]
_VIDEO_OUTPUTS: _Signature = (("video_embedding", "float32", 2), ("mixed_5c", "float32", 2))
SIGNATURES: Mapping[tuple[str, str], tuple[_Signature, _Signature]] = {
    ("video", "uint8"): ((("video", "uint8", 5),), _VIDEO_OUTPUTS),
    ("video", "float32"): ((("video", "float32", 5),), _VIDEO_OUTPUTS),
    ("text", "tokens"): ((("tokens", "int64", 2),), (("text_embedding", "float32", 2),)),
    ("projection", "mixed_5c"): ((("mixed_5c", "float32", 2),), (("video_embedding", "float32", 2),)),
}
MODULES = ("video", "text", "projection")


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One ONNX graph of a bundle.

    Attributes:
        module: "video", "text" or "projection".
        input_form: "uint8" or "float32" (video), "tokens" (text), "mixed_5c" (projection).
        precision: "fp32" or "fp16": the dtype inside the graph; or "int8": an FP32 graph whose convolutions are
            quantised, with QuantizeLinear and DequantizeLinear around them. Embeddings are float32 in all.
        file: Its name in the bundle's folder.
        sha256: Hex digest of the file.
        bytes: Its size.
        opset: ONNX operator set.
        inputs: What it takes.
        outputs: What it gives.
        parity: Figures measured when it was made: against the PyTorch tower, or the graph it was made from.
    """

    module: str
    input_form: str
    precision: str
    file: str
    sha256: str
    bytes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.module} {self.input_form} {self.precision} ({self.file})"

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        specs = {key: [spec.to_json() for spec in getattr(self, key)] for key in ("inputs", "outputs")}
        return {**asdict(self), **specs}


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """The word list of a bundle: UTF-8, one word a line, id = line index + 1.

    Attributes:
        file: Its name in the bundle's folder.
        sha256: Hex digest of the file.
        words: Number of lines.
        max_words: Ids in a row of the text tower's input, unless a call says otherwise.
    """

    file: str
    sha256: str
    words: int
    max_words: int

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a bundle says about itself.

    Attributes:
        format_version: Version of the bundle's format, 1 here.
        name: The model's name, such as "s3d-howto100m".
        model_digest: Hex sha256 over weights and vocabulary, the same for every export of the same weights.
        graphs: The ONNX graphs, no two with the same module, input form and precision.
        vocabulary: The word list.
        sampling: Default of embed and search: "preset" (its name), "size" (pixels), "frames".
        made: How the bundle was made: tool, versions, date, sources. Free-form.
    """

    format_version: int
    name: str
    model_digest: str
    graphs: tuple[GraphFile, ...]
    vocabulary: VocabularyFile
    sampling: Mapping[str, Any]
    made: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of manifest.json."""
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            "name": self.name,
            "model_digest": self.model_digest,
            "graphs": [graph.to_json() for graph in self.graphs],
            "vocabulary": self.vocabulary.to_json(),
            "sampling": dict(self.sampling),
            "made": dict(self.made),
        }

    @classmethod
    def from_json(cls, value: object, *, source: str = MANIFEST_FILE) -> Manifest:
        """Read the content of manifest.json.

        Args:
            value: The decoded JSON.
            source: The file's name, for messages.

        Raises:
            BundleVersionError: if the format is newer than this release reads.
            BundleError: naming `source` and everything that is wrong with it.
        """
        _check_format(value, source)
        problems: list[str] = []
        root = Fields(value, "the manifest", problems)
        root.get("format", str)
        manifest = cls(
            format_version=root.get("format_version", int),
            name=root.get("name", str, bool, "must not be empty"),
            model_digest=root.sha256("model_digest"),
            graphs=tuple(_graph(item, index, problems) for index, item in enumerate(root.get("graphs", list))),
            vocabulary=_vocabulary(root.get("vocabulary", dict), problems),
            sampling=_sampling(root.get("sampling", dict), problems),
            made=root.get("made", dict),
        )
        root.close()
        if not problems:  # these look at whole graphs, so they need every field to be sound
            problems += _conflicts(manifest)
        if problems:
            listed = "\n  - ".join(problems)
            raise BundleError(f"{source} is not a valid manifest; export the bundle again:\n  - {listed}")
        return manifest


def decode(data: bytes, *, source: str) -> Manifest:
    """Read the bytes of a manifest.json.

    Raises:
        BundleError: if it is not JSON, or as `Manifest.from_json`.
    """
    try:
        value = strict_json(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} cannot be read as JSON ({error}); export or copy the bundle again") from error
    return Manifest.from_json(value, source=source)


def encode(manifest: Manifest, *, source: str) -> bytes:
    """Return the bytes of a manifest.json, after reading them back, so that nothing unreadable is ever written.

    Raises:
        BundleError: if the reader would refuse it.
    """
    try:
        data = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{source} cannot be written as JSON: {error}") from error
    decode(data, source=source)
    return data


def _check_format(value: object, source: str) -> None:
    """Refuse what is no bundle, and what a newer release wrote, before looking at fields it may have changed."""
    name = value.get("format") if isinstance(value, dict) else None
    if not isinstance(value, dict) or name != FORMAT:
        raise BundleError(f"{source}: format is {brief(name)}; {FORMAT!r} expected, so this is not a milnce bundle")
    version = value.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BundleError(f"{source}: format_version is {brief(version)}; a whole number of at least 1 expected")
    if version > FORMAT_VERSION:
        raise BundleVersionError(
            f"{source} is of format {version}; this release reads up to {FORMAT_VERSION}. "
            "Upgrade milnce (pip install --upgrade milnce) or export the bundle with this release"
        )


def _graph(value: object, index: int, problems: list[str]) -> GraphFile:
    fields = Fields(value, f"graph {index}", problems)
    graph = GraphFile(
        module=fields.get("module", str),
        input_form=fields.get("input_form", str),
        precision=fields.get("precision", str, PRECISIONS.__contains__, f"must be one of {', '.join(PRECISIONS)}"),
        file=fields.file(),
        sha256=fields.sha256("sha256"),
        bytes=fields.positive("bytes"),
        opset=fields.positive("opset"),
        inputs=_specs(fields, "inputs"),
        outputs=_specs(fields, "outputs"),
        parity=fields.get("parity", dict),
    )
    fields.close()
    if fields.sound:
        _check_signature(graph, f"graph {index}", problems)
    return graph


def _specs(fields: Fields, key: str) -> tuple[TensorSpec, ...]:
    return tuple(spec for item in fields.get(key, list) for spec in _spec(item, key, fields))


def _spec(item: object, key: str, fields: Fields) -> list[TensorSpec]:
    try:
        return [TensorSpec.from_json(item)]
    except BundleError as error:
        fields.problems.append(f"{fields.where}: {key}: {error}")
        return []


def _check_signature(graph: GraphFile, where: str, problems: list[str]) -> None:
    signature = SIGNATURES.get((graph.module, graph.input_form))
    if signature is None:
        known = ", ".join(f"{module}/{form}" for module, form in SIGNATURES)
        given = f"{brief(graph.module)}/{brief(graph.input_form)}"
        problems.append(f"{where}: module and input_form are {given}; known are {known}")
        return
    for key, specs, expected in (("inputs", graph.inputs, signature[0]), ("outputs", graph.outputs, signature[1])):
        given_tensors = tuple((spec.name, spec.dtype, len(spec.shape)) for spec in specs)
        if sorted(given_tensors) != sorted(expected):
            problems.append(
                f"{where}: {key} of {graph.module}/{graph.input_form} must be {_tensors(expected)}, "
                f"not {_tensors(given_tensors)}"
            )


def _tensors(tensors: Iterable[tuple[str, str, int]]) -> str:
    return " and ".join(f"{name[:60]!r} {dtype[:60]} of rank {rank}" for name, dtype, rank in tensors) or "empty"


def _vocabulary(value: object, problems: list[str]) -> VocabularyFile:
    fields = Fields(value, "vocabulary", problems)
    vocabulary = VocabularyFile(
        file=fields.file(),
        sha256=fields.sha256("sha256"),
        words=fields.positive("words"),
        max_words=fields.positive("max_words"),
    )
    fields.close()
    return vocabulary


def _sampling(value: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    fields = Fields(value, "sampling", problems)
    sampling = {
        "preset": fields.get("preset", str, bool, "must not be empty"),
        "size": fields.positive("size"),
        "frames": fields.positive("frames"),
    }
    fields.close()
    return sampling


def _conflicts(manifest: Manifest) -> list[str]:
    problems = [] if manifest.graphs else ["there are no graphs"]
    kinds = [(graph.module, graph.input_form, graph.precision) for graph in manifest.graphs]
    files = [MANIFEST_FILE, manifest.vocabulary.file, *(graph.file for graph in manifest.graphs)]
    problems += [f"graph {'/'.join(kind)} is listed twice" for kind in repeated(kinds)]
    problems += [f"file {name!r} is named twice" for name in repeated(name.lower() for name in files)]
    return problems
