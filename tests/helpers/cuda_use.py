"""Uses every part of the CUDA layer once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from milnce.cuda import Cuda


def roundtrip(cuda: Cuda) -> None:
    """Use every part of the layer once, in the order a backend does."""
    with (
        cuda.device_buffer(64) as device,
        cuda.pinned_buffer(64) as pinned,
        cuda.stream() as stream,
        cuda.stream() as other,
        cuda.event() as event,
        cuda.event(timing=True) as start,
        cuda.event(timing=True) as end,
    ):
        sent = pinned.array("float32", (4, 4))
        sent[:] = np.arange(16).reshape(4, 4)
        start.record(stream)
        with stream.capture() as capture:
            cuda.upload(device.pointer, pinned.pointer, 64, stream)
        with capture.graph as graph:
            graph.launch(stream)
            event.record(stream)
            other.wait(event)
            cuda.download(pinned.pointer, device.pointer, 32, other)
            event.record(other)
            event.synchronize()
            assert event.done
            cuda.fill(device.pointer, 0, 64, stream)
            cuda.copy(device.pointer + 32, device.pointer, 32, stream)
            end.record(stream)
            stream.synchronize()
        assert end.elapsed_ms(start) > 0
        assert cuda.device_of(device.pointer) == 0
        assert cuda.memory()[0] < cuda.memory()[1]
