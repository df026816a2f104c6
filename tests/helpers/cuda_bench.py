"""A small set-up on the simulated GPU for the tests of the simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, SupportsInt

from cuda.bindings import runtime

from helpers.fake_cuda import FakeCuda

if TYPE_CHECKING:
    from helpers.fake_cuda_streams import Policy

Error = runtime.cudaError_t
UP, DOWN = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
N = 512  # bytes

SCHEDULES: list[tuple[Policy, int]] = [("eager", 0), ("lazy", 0), *(("random", seed) for seed in range(5))]


def ok(result: tuple[Any, ...]) -> Any:  # noqa: ANN401  whatever the call returns
    """Return the value of a call that must succeed."""
    assert result[0] == Error.cudaSuccess, result
    return result[1] if len(result) > 1 else None


class Bench:
    """A pinned input full of 7 and output, a device buffer, all of N bytes, two non-blocking streams and an event."""

    def __init__(
        self,
        *,
        policy: Policy = "eager",
        seed: int = 0,
        pageable: Literal["staged", "forbidden"] = "staged",
        fake: FakeCuda | None = None,
    ) -> None:
        self.fake = fake or FakeCuda(policy=policy, seed=seed, pageable=pageable)
        self.source, self.target = ok(self.fake.cudaHostAlloc(N, 0)), ok(self.fake.cudaHostAlloc(N, 0))
        self.device = ok(self.fake.cudaMalloc(N))
        self.a, self.b = (ok(self.fake.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)) for _ in range(2))
        self.event = ok(self.fake.cudaEventCreateWithFlags(runtime.cudaEventDisableTiming))
        self.fake.view(self.source, N)[:] = 7

    def upload(self, stream: SupportsInt) -> None:
        """Copy the input to the device."""
        ok(self.fake.cudaMemcpyAsync(self.device, self.source, N, UP, stream))

    def download(self, stream: SupportsInt) -> None:
        """Copy the device buffer to the output."""
        ok(self.fake.cudaMemcpyAsync(self.target, self.device, N, DOWN, stream))

    def order(self) -> None:
        """Let stream b come after what is on stream a."""
        ok(self.fake.cudaEventRecord(self.event, self.a))
        ok(self.fake.cudaStreamWaitEvent(self.b, self.event, 0))

    @property
    def result(self) -> set[int]:
        """Return the values in the output."""
        return set(self.fake.view(self.target, N).tolist())

    def close(self) -> None:
        """Free everything."""
        for pointer in (self.source, self.target):
            ok(self.fake.cudaFreeHost(pointer))
        ok(self.fake.cudaFree(self.device))
        for stream in (self.a, self.b):
            ok(self.fake.cudaStreamDestroy(stream))
        ok(self.fake.cudaEventDestroy(self.event))
