"""What a backend gives for an array of any length: run in batches, joined, and refused where it is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from milnce.backends import Backend

    Float32Array = NDArray[np.float32]


def not_finite(backend: Backend, output: str) -> NonFiniteError:
    """Return the error that says that `backend` gave NaN or infinity in `output`."""
    # A backend opened for fp16 runs the projection in FP32; one opened for bf16 computes FP32 graphs in it.
    precision = "bf16" if backend.precision == "bf16" else backend.graph.precision
    cure = "the input, or the bundle's weights, are out of range" if precision == "fp32" else "try fp32"
    return NonFiniteError(
        f"{backend.graph.module} in {precision} on {backend.name} gave NaN or infinity in {output}; {cure}"
    )


def run_in_batches(backend: Backend, array: NDArray[Any], step: int) -> Mapping[str, Float32Array]:
    """Run `array` in batches of at most `step` along its first axis, and join the results in order.

    Raises:
        NonFiniteError: if an output has NaN or infinity.
    """
    spec = backend.inputs[0]
    if spec.shape[0].maximum is not None:
        step = min(step, spec.shape[0].maximum)
    batches = ({spec.name: array[start : start + step]} for start in range(0, len(array), step))
    parts = list(backend.stream(batches)) if step < len(array) else [backend.run({spec.name: array})]
    joined = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in backend.outputs}
    for name, values in joined.items():
        if not np.isfinite(values).all():
            raise not_finite(backend, name)
    return joined
