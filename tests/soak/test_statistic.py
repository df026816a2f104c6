"""What is a leak and what is noise, on made series."""

from __future__ import annotations

import numpy as np
import pytest

from soaking.statistic import MIB, Limits, count_growth, memory_growth, second_half

SAMPLES = 60
REQUESTS = [200 * (index + 1) for index in range(SAMPLES)]
BASE = 200 * MIB


def series(*parts: np.ndarray[tuple[int], np.dtype[np.float64]] | float) -> list[float]:
    """Add up parts of a series, over a base of 200 MiB."""
    return [float(value) for value in BASE + np.sum([np.broadcast_to(part, SAMPLES) for part in parts], axis=0)]


def noise(scale_bytes: float, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(0, scale_bytes, SAMPLES)


def line(request_bytes: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(REQUESTS, np.float64) * request_bytes


def warm_up(size_bytes: float, samples: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return -size_bytes * np.exp(-np.arange(SAMPLES) / samples)


def step(at: int, size_bytes: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.where(np.arange(SAMPLES) >= at, size_bytes, 0.0)


def saw(period: int, size_bytes: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Garbage that piles up and is collected."""
    return np.arange(SAMPLES) % period / period * size_bytes


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(series(0), id="flat"),
        pytest.param(series(line(-500)), id="falling"),
        pytest.param(series(warm_up(100 * MIB, 4)), id="warm-up"),
        pytest.param(series(saw(5, 8 * MIB)), id="saw"),
        pytest.param(series(saw(10, 20 * MIB)), id="coarse saw"),
        pytest.param(series(step(40, 5 * MIB)), id="a step"),
        pytest.param(series(step(56, 20 * MIB)), id="a step near the end"),
        pytest.param(series(step(48, 200 * MIB), -step(49, 200 * MIB)), id="one high sample"),
        pytest.param(series(line(100)), id="a little a request"),
    ],
)
def test_what_is_no_leak(held: list[float]) -> None:
    assert memory_growth(REQUESTS, held).problem == ""


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scale_mib", [0.3, 3.0, 6.0])
def test_noise_is_no_leak(seed: int, scale_mib: float) -> None:
    assert memory_growth(REQUESTS, series(noise(scale_mib * MIB, seed))).problem == ""


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_leak_is_found_in_noise(seed: int) -> None:
    found = memory_growth(REQUESTS, series(line(2048), noise(0.5 * MIB, seed)))
    assert found.problem.startswith("gains ")
    assert found.request_bytes == pytest.approx(2048, rel=0.35)


def test_a_leak_of_a_kib_a_request_is_named_with_its_size() -> None:
    found = memory_growth(REQUESTS, series(line(1024), warm_up(50 * MIB, 3)))
    assert found.samples == 27
    assert found.requests == 5200
    assert found.request_bytes == pytest.approx(1024, rel=0.01)
    assert found.fitted_bytes == pytest.approx(5200 * 1024, rel=0.01)
    assert found.problem == (
        "gains 1,024 bytes a request, 5.1 MiB in 5,200 requests, and goes on; at most 4.0 MiB allowed"
    )


def test_a_leak_below_the_floor_in_all_is_none_yet() -> None:
    assert memory_growth(REQUESTS, series(line(400))).problem == ""
    assert memory_growth(REQUESTS, series(line(400)), Limits(floor_bytes=MIB)).problem


def half_an_hour(requests_a_minute: int, *thirds_mib: float, request_bytes: float = 0.0, seed: int = 0) -> str:
    """Return the problem of 258 samples in 30 minutes: the second half moves between its thirds' means, with noise."""
    requests = np.arange(1, 259) * (requests_a_minute * 30 // 258)
    held = np.interp(np.linspace(-1, 1, 258), (1 / 6, 1 / 2, 5 / 6), thirds_mib) * MIB
    held += np.random.default_rng(seed).normal(0, 0.5 * MIB, 258) + requests * request_bytes
    return memory_growth(requests.tolist(), held.tolist()).problem


# Thirds of the second half of the resident memory of two soaks of 30 minutes, and how much they asked a minute then.
RECORDED = [(5_310, 219.0, 219.2, 220.8), (32_800, 224.4, 224.2, 228.3)]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("recorded", [*RECORDED, (20_000, 219.0, 219.0, 219.0), (6_000, 221.0, 220.0, 219.0)])
def test_half_an_hour_that_was_flat_passes(recorded: tuple[int, float, float, float], seed: int) -> None:
    assert half_an_hour(*recorded, seed=seed) == ""


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("recorded", [*RECORDED, (20_000, 219.0, 219.0, 219.0), (6_000, 219.0, 219.0, 219.0)])
def test_100_bytes_a_request_for_half_an_hour_fail(recorded: tuple[int, float, float, float], seed: int) -> None:
    assert "and goes on" in half_an_hour(*recorded, request_bytes=100, seed=seed)


def test_what_may_be_gained_grows_with_the_requests() -> None:
    assert half_an_hour(20_000, 219, 219, 219, request_bytes=12) == ""
    assert half_an_hour(20_000, 219, 219, 219, request_bytes=32).endswith("; at most 4.1 MiB allowed")
    assert half_an_hour(40_000, 219, 219, 219, request_bytes=12) == ""
    assert half_an_hour(40_000, 219, 219, 219, request_bytes=32).endswith("; at most 8.2 MiB allowed")


@pytest.mark.parametrize("held", [series(line(16_384)), series(step(50, 60 * MIB)), series(saw(30, 100 * MIB))])
def test_fast_growth_is_a_leak_whatever_its_shape(held: list[float]) -> None:
    found = memory_growth(REQUESTS, held)
    assert found.problem.startswith("grew by ")
    assert found.problem.endswith("over its mean; at most 32.0 MiB allowed")
    assert found.growth_bytes > 32 * MIB


def test_growth_is_the_maximum_less_the_mean_without_the_largest_samples() -> None:
    held = series(step(59, 500 * MIB), step(58, 10 * MIB))
    found = memory_growth(REQUESTS, held)
    # Of 27 samples the largest is left out; of the other 26 one lies 10 MiB above the rest.
    assert found.growth_bytes == pytest.approx(10 * MIB * 25 / 26)


def test_leaking_garbage_that_is_collected_now_and_then_is_found() -> None:
    assert memory_growth(REQUESTS, series(saw(5, 4 * MIB), line(4096))).problem.startswith("gains ")


def test_the_second_half_is_that_of_what_the_warm_up_leaves() -> None:
    assert second_half(60) == slice(33, 60)
    assert second_half(20) == slice(11, 20)


@pytest.mark.parametrize(
    ("requests", "held", "said"),
    [
        (REQUESTS[:19], series(0)[:19], "19 samples of memory and 19 of requests; .* let the soak run longer"),
        (REQUESTS, series(0)[:30], "30 samples of memory and 60 of requests"),
        ([1] * SAMPLES, series(0), "requests must rise from sample to sample"),
    ],
)
def test_too_little_to_tell_is_refused(requests: list[int], held: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        memory_growth(requests, held)


@pytest.mark.parametrize(
    ("values", "after"),
    [
        ([9] * 40, 9),
        ([5] * 4 + [9] * 36, 9),
        ([9, 10, 11] * 10 + [9] * 10, 9),
        ([9] * 39 + [12], 9),
        ([12] * 20 + [9] * 20, 9),
    ],
)
def test_counts_that_come_back_are_no_leak(values: list[int], after: int) -> None:
    found = count_growth(values)
    assert (found.after, found.problem) == (after, "")


@pytest.mark.parametrize("values", [list(range(40)), [9] * 25 + [10] * 15, [9, 12] * 10 + [10, 13] * 10])
def test_a_count_that_never_comes_back_is_a_leak(values: list[int]) -> None:
    found = count_growth(values)
    assert found.after > found.before
    assert found.problem == f"rose from {found.before} to {found.after}, and nothing was at work"


def test_too_few_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="19 samples; at least 20 expected: let the soak run longer"):
        count_growth([1] * 19)
