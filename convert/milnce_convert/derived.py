"""A bundle with the graphs of another and some that were made from them: other precisions, without the weights."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from milnce.bundle_writer import BundleWriter
from milnce.errors import OutputError
from milnce.plans import PLANS_FOLDER
from milnce_convert.host_folder import vocabulary_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from milnce.bundle import Bundle
    from milnce.manifest import GraphFile


@contextmanager
def derived_bundle(destination: Path, *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Give a writer that `copy_graph` and `commit_derived` are called with; nothing is left without the latter.

    Args:
        destination: Folder of the new bundle; it may be that of the bundle which it is made from.
        overwrite: Replace a bundle that is there.

    Yields:
        The writer, before any work is done, so that a destination that cannot be had is refused at once.

    Raises:
        OutputError: if the destination exists and may not be replaced, or cannot be written.
    """
    plans = destination / PLANS_FOLDER
    if overwrite and plans.exists():
        raise OutputError(
            f"{destination} holds TensorRT plans, which would be lost; write to another folder (--out), or move "
            f"{os.fspath(plans)!r} away first"
        )
    with BundleWriter(destination, overwrite=overwrite) as writer:
        yield writer


def copy_graph(writer: BundleWriter, bundle: Bundle, graph: GraphFile) -> None:
    """Write a graph of `bundle`, checked against its manifest, as it is.

    Raises:
        BundleError: if its file is missing or changed.
        OutputError: if it cannot be written.
    """
    writer.add_graph(
        module=graph.module,
        input_form=graph.input_form,
        precision=graph.precision,
        model=bundle.read(graph),
        opset=graph.opset,
        inputs=graph.inputs,
        outputs=graph.outputs,
        parity=graph.parity,
    )


def commit_derived(writer: BundleWriter, bundle: Bundle, *, made: Mapping[str, Any] | None = None) -> None:
    """Write the vocabulary of `bundle` and the manifest, and move the new bundle to its place.

    Args:
        writer: Holds the graphs already.
        bundle: What name, weights, vocabulary and sampling are from.
        made: What to add to how `bundle` was made.

    Raises:
        BundleError: if the vocabulary's file is missing or changed.
        OutputError: if something cannot be written.
    """
    manifest = bundle.manifest
    words = vocabulary_bytes(bundle).decode("utf-8").removesuffix("\n").split("\n")
    writer.add_vocabulary(words, max_words=manifest.vocabulary.max_words)
    writer.commit(
        name=manifest.name,
        model_digest=manifest.model_digest,
        sampling=manifest.sampling,
        made={**manifest.made, **(made or {})},
    )
