"""NumPy: the text tower and the projection on the CPU, with nothing to install and nothing to compile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends.base import Availability, Backend, CpuBackend, UnsuitableGraphError, check_signature
from milnce.errors import BackendError, BundleError
from milnce.onnx_reader import read_graph
from milnce.text_tower import TextTower
from milnce.tower_forms import projection_weights, text_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from milnce.manifest import GraphFile
    from milnce.onnx_reader import OnnxGraph
    from milnce.text_tower import Linear

NAME = "numpy"
MODULES = ("text", "projection")


def probe() -> Availability:
    """Say what NumPy can do here. Never raises."""
    return Availability(NAME, np.__version__, ("cpu",), ("fp32",), modules=MODULES)


def open_graph(model: bytes | memoryview, graph: GraphFile, *, precision: str, threads: int | None) -> Backend:
    """Open a graph on the CPU.

    Args:
        model: The checked ONNX file. Kept, as the table of words stays where it lies in it.
        graph: Its entry in the manifest.
        precision: "fp32".
        threads: Threads of what is not a matrix product; None for every core. Those of matrix products are the BLAS
            library's, see `milnce.text_tower.TextTower`.

    Raises:
        UnsuitableGraphError: if it is not of the form that this knows: another backend may run it.
        BackendError: if it is no graph, or not what the manifest says.
    """
    try:
        found = read_graph(model, graph.file)
    except BundleError as error:
        raise BackendError(f"{NAME} cannot open {graph}: {error}") from error
    check_signature(NAME, graph, found.inputs, found.outputs)
    run = _runner(graph, found, threads) if precision == "fp32" else None
    if run is None:
        kinds = ", ".join(node.kind for node in found.nodes[:10])
        raise UnsuitableGraphError(
            f"it runs the text tower and the projection in fp32 alone, and {graph} is neither, in {precision}: {kinds}"
        )
    return NumpyBackend(graph, run)


def _runner(graph: GraphFile, found: OnnxGraph, threads: int | None) -> TextTower | _Projection | None:
    if graph.module == "text":
        weights = text_weights(found)
        return None if weights is None else TextTower(weights, threads=threads)
    if graph.module == "projection":
        layer = projection_weights(found)
        return None if layer is None else _Projection(layer.aligned())
    return None


class _Projection:
    """One linear layer."""

    def __init__(self, layer: Linear) -> None:
        self._layer = layer

    def __call__(self, mixed_5c: NDArray[np.float32]) -> NDArray[np.float32]:
        # Infinity is looked for by the model, in every backend's results, and reported with the backend's name.
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(mixed_5c @ self._layer.weight + self._layer.bias)


class NumpyBackend(CpuBackend):
    """The text tower or the projection in NumPy. May run from several threads at once, and holds nothing of a run."""

    name = NAME
    splits_itself = True

    def __init__(self, graph: GraphFile, run: TextTower | _Projection) -> None:
        super().__init__(graph, precision="fp32")
        self._tower: TextTower | _Projection | None = run

    def close(self) -> None:
        """Free the weights."""
        super().close()
        self._tower = None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tower = self._tower
        if tower is None:
            raise self._closed_in_use()
        return {self.outputs[0].name: tower(feeds[self.inputs[0].name])}
