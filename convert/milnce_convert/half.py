"""FP16 graphs for a bundle that has FP32 ones only, without its weights: the demo bundle is committed in FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milnce.bundle import Bundle
from milnce.errors import InputError
from milnce_convert.convert import add_exported
from milnce_convert.derived import commit_derived, copy_graph, derived_bundle
from milnce_convert.export import ExportedGraph, half_precision
from milnce_convert.fixtures import as_video, moving_clips, random_tokens
from milnce_convert.measure import run_graph
from milnce_convert.parity import FP16_GATE, compare, require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.bundle import GraphFile

_CLIPS, _SENTENCES = 6, 32


def add_half_precision(bundle: Bundle, destination: Path, *, overwrite: bool = False) -> Bundle:
    """Write a bundle with the graphs of `bundle` and an FP16 cast of each FP32 video and text graph.

    The cast is held to the FP16 gate against the FP32 graph on ONNX Runtime, not against PyTorch, as there are no
    weights; its parity record says so.

    Args:
        bundle: A bundle with no FP16 graph.
        destination: Folder of the new bundle.
        overwrite: Replace a bundle that is there.

    Raises:
        InputError: if the bundle has FP16 graphs already.
        ParityError: if a cast does not give the FP32 graph's numbers; nothing is written.
        OutputError: if the destination exists, or cannot be written.
    """
    manifest = bundle.manifest
    if any(graph.precision == "fp16" for graph in manifest.graphs):
        raise InputError(f"{bundle.path} has FP16 graphs already; use it as it is")
    rows, words = manifest.vocabulary.words + 1, manifest.vocabulary.max_words
    with derived_bundle(destination, overwrite=overwrite) as writer:
        for graph in manifest.graphs:
            copy_graph(writer, bundle, graph)
            if graph.module != "projection" and graph.precision == "fp32":
                exported = _exported(graph, bundle.read(graph))
                half = half_precision(exported)
                feeds = _feeds(graph, manifest.sampling, rows=rows, words=words)
                add_exported(writer, half, _parity(exported, half, feeds))
        commit_derived(writer, bundle)
    return Bundle.open(destination)


def _exported(graph: GraphFile, model: bytes) -> ExportedGraph:
    return ExportedGraph(
        graph.module, graph.input_form, graph.precision, graph.opset, graph.inputs, graph.outputs, model
    )


def _feeds(graph: GraphFile, sampling: Mapping[str, Any], *, rows: int, words: int) -> dict[str, NDArray[Any]]:
    """Return clips as the bundle samples them, or sentences, as the graph takes them."""
    if graph.module == "text":
        return {"tokens": random_tokens(_SENTENCES, rows, words=words, seed=1)}
    clips = moving_clips(_CLIPS, sampling["frames"], sampling["size"], sampling["size"], seed=1)
    return {"video": clips if graph.input_form == "uint8" else as_video(clips).contiguous().numpy()}


def _parity(plain: ExportedGraph, half: ExportedGraph, feeds: dict[str, NDArray[Any]]) -> dict[str, Any]:
    expected, found = run_graph(plain.model, feeds), run_graph(half.model, feeds)
    (fed,) = feeds.values()
    outputs = {}
    for name, reference in expected.items():
        agreement = compare(reference, found[name])
        require(agreement, FP16_GATE, f"{half.module} {half.input_form} {half.precision}, {name}")
        outputs[name] = {f"{len(fed)} of {'x'.join(map(str, fed.shape[1:]))}": agreement.to_json()}
    return {"reference": "FP32 graph, ONNX Runtime, CPU", "gate": "fp16", "outputs": outputs}
