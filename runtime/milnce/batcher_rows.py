"""From the requests of a batch to the array that is run, and from what was run to an answer for each of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.outputs import not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from milnce.batcher_queue import Request

Outputs = Mapping[str, "NDArray[Any]"]


def assemble(batch: Sequence[Request]) -> NDArray[Any]:
    """Copy the requests' items into one array, and let go of them. One alone is not copied."""
    items = [request.item for request in batch if request.item is not None]
    for request in batch:
        request.item = None
    return items[0][None] if len(items) == 1 else np.stack(items)


def rows(batch: Sequence[Request], outputs: Outputs, row: Callable[[Outputs], object]) -> list[object]:
    """Return for each request what `row` makes of its row of every output, or an error if NaN or infinity is there.

    The rows are copies, so that one which is kept does not keep those of others.
    """
    finite = {name: np.asarray(np.isfinite(values).all(axis=1)) for name, values in outputs.items()}
    answers: list[object] = []
    for index, request in enumerate(batch):
        name = next((name for name, where in finite.items() if not where[index]), None)
        if name is None:
            answers.append(row({name: values[index].copy() for name, values in outputs.items()}))
        else:
            answers.append(not_finite(request.bucket.backend, name))
    return answers


def failures(batch: Sequence[Request], error: BaseException) -> list[BaseException]:
    """Return an error for each request: one that several threads raise would mix up their tracebacks."""
    if len(batch) == 1:
        return [error]
    return [_copied(error) for _ in batch]


def _copied(error: BaseException) -> BaseException:
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - a library's own class, which takes other arguments
        return error
    own.__cause__ = error
    return own
