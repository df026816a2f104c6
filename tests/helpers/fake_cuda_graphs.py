# ruff: noqa: N802, N803, D102  (functions and arguments have the names and the meaning of the binding's)
"""Captures and graphs of the simulated CUDA runtime."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cuda.bindings import runtime

from helpers.fake_cuda_calls import CudaFailureError, Error, Result, api
from helpers.fake_cuda_queues import LEGACY, QueueCalls
from helpers.fake_cuda_streams import Capture, GraphExec, merge

if TYPE_CHECKING:
    from helpers.fake_cuda_queues import Handle


class GraphCalls(QueueCalls):
    """Captures and graphs."""

    @api()
    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> Result:
        found = self.stream_of(stream)
        if int(stream) in LEGACY:
            raise CudaFailureError(Error.cudaErrorStreamCaptureUnsupported)
        if found.capture is not None:
            raise CudaFailureError(Error.cudaErrorIllegalState)
        capture = Capture(found, int(mode), threading.get_ident())
        capture.join(found, {})
        self.captures.append(capture)
        return ()

    @api(1, anyway=True)
    def cudaStreamEndCapture(self, stream: Handle) -> Result:
        found = self.stream_of(stream)
        capture = found.capture
        if capture is None:
            raise CudaFailureError(Error.cudaErrorIllegalState)
        if capture.origin is not found:
            raise CudaFailureError(Error.cudaErrorStreamCaptureUnmatched)
        relaxed = capture.mode == runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        if not relaxed and capture.thread != threading.get_ident():
            raise CudaFailureError(Error.cudaErrorStreamCaptureWrongThread)
        self.captures.remove(capture)
        for one in capture.streams:
            one.capture = None
        if capture.invalid:
            raise CudaFailureError(Error.cudaErrorStreamCaptureInvalidated)
        if not capture.joined:
            raise CudaFailureError(Error.cudaErrorStreamCaptureUnjoined)
        handle = next(self._handles)
        self.graphs[handle] = tuple(capture.nodes)
        return (runtime.cudaGraph_t(handle),)

    @api(1)
    def cudaStreamIsCapturing(self, stream: Handle) -> Result:
        capture = self.stream_of(stream).capture
        status = runtime.cudaStreamCaptureStatus
        if capture is None:
            return (status.cudaStreamCaptureStatusNone,)
        return (status.cudaStreamCaptureStatusInvalidated if capture.invalid else status.cudaStreamCaptureStatusActive,)

    @api(1)
    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> Result:
        del flags
        nodes = self.taken(self.graphs, graph, "graph")
        handle = next(self._handles)
        self.executables[handle] = GraphExec(nodes)
        return (runtime.cudaGraphExec_t(handle),)

    @api()
    def cudaGraphUpload(self, graphExec: Handle, stream: Handle) -> Result:
        self.taken(self.executables, graphExec, "graph executable")
        self.stream_of(stream)
        return ()

    @api()
    def cudaGraphLaunch(self, graphExec: Handle, stream: Handle) -> Result:
        executable, found = self.taken(self.executables, graphExec, "graph executable"), self.stream_of(stream)
        merge(found.clock, executable.clock)
        for node in executable.nodes:
            executable.last = self.enqueue(found, node, (executable.last,)) or executable.last
        executable.clock = dict(found.clock)
        return ()

    @api(anyway=True)
    def cudaGraphDestroy(self, graph: Handle) -> Result:
        self.taken(self.graphs, graph, "graph")
        del self.graphs[int(graph)]
        return ()

    @api(anyway=True)
    def cudaGraphExecDestroy(self, graphExec: Handle) -> Result:
        self.taken(self.executables, graphExec, "graph executable")
        del self.executables[int(graphExec)]
        return ()
