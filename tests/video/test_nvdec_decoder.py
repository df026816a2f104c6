"""What is made of the frames that NVIDIA's decoder hands out: a decoder that hands out what a test says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helpers import fake_cuda, fake_nvdec
from milnce.cuda import Cuda
from milnce.errors import VideoError
from milnce.video.nvdec_decoder import NvdecDecoder
from milnce.video.nvdec_picture import Source

if TYPE_CHECKING:
    from helpers.fake_cuda import FakeCuda


class Scripted:
    """A decoder that hands out frames at the times that a test gives, whatever it is fed."""

    def __init__(self, gpu: FakeCuda, times: list[list[int]]) -> None:
        self.pointer = int(gpu.cudaMalloc(96)[1])
        self.times = times
        self.fed: list[int] = []
        self.cudaVideoCodec = fake_nvdec.cudaVideoCodec
        self.PacketData = fake_nvdec.PacketData

    def CreateDecoder(self, **_: object) -> Scripted:  # noqa: N802 - PyNvVideoCodec's name
        """Return this."""
        return self

    def Decode(self, packet: fake_nvdec.PacketData) -> list[fake_nvdec.DecodedFrame]:  # noqa: N802 - likewise
        """Return the next frames, in the one surface there is."""
        self.fed.append(packet.pts if packet.bsl else -1)
        views = [SimpleNamespace(shape=[8, 8, 1], dataptr=self.pointer), SimpleNamespace(dataptr=self.pointer + 64)]
        frames = self.times.pop(0) if self.times else []
        return [fake_nvdec.DecodedFrame(time, SimpleNamespace(name="NV12"), views) for time in frames]


def packet(pts: int | None, *, discard: bool = False, size: int = 4, changed: bool = False) -> Any:  # noqa: ANN401
    def has_sidedata(name: str) -> bool:
        return changed and name == "new_extradata"

    return SimpleNamespace(size=size, pts=pts, duration=10, is_discard=discard, buffer_ptr=1, has_sidedata=has_sidedata)


def scripted(monkeypatch: pytest.MonkeyPatch, times: list[list[int]]) -> tuple[NvdecDecoder, Scripted]:
    gpu = fake_cuda.install(monkeypatch, policy="lazy")
    module, cuda = Scripted(gpu, times), Cuda()
    video: Any = SimpleNamespace(
        path="v.webm",
        format="matroska",
        stream=SimpleNamespace(codec_context=SimpleNamespace(name="vp9")),
    )
    stored = Source(8, 8, wide=False, full_range=False, colorspace=2, matrix=None)
    return NvdecDecoder(module, video, stored, cuda, cuda.stream()), module


def test_what_is_shown_before_the_keyframe_that_decoding_began_with_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, module = scripted(monkeypatch, [[], [], [80, 90], [100, 110], [], [], [380, 400]])
    found = [frame.pts for pts in (100, 80, 90, 110) for frame in decoder.decode(packet(pts))]
    assert found == [100, 110]
    decoder.restart()
    assert [frame.pts for pts in (400, 380) for frame in decoder.decode(packet(pts))] == [400]
    assert module.fed == [100, 80, 90, 110, -1, 400, 380]


def test_frames_of_discarded_packets_are_dropped_and_the_rest_have_their_durations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, _ = scripted(monkeypatch, [[], [], [0, 10], [20]])
    assert decoder.decode(packet(0, discard=True)) == []
    assert decoder.decode(packet(20)) == []
    assert [(frame.pts, frame.duration) for frame in decoder.decode(packet(10))] == [(10, 10)]
    assert [(frame.pts, frame.duration) for frame in decoder.decode(packet(None, size=0))] == [(20, 10)]


def test_a_restart_ends_the_stream_and_forgets_what_was_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, module = scripted(monkeypatch, [[], [0], [], [500], [40, 50]])
    assert decoder.decode(packet(0)) == []
    decoder.restart()
    assert module.fed == [0, -1]
    assert decoder.decode(packet(500)) == []
    assert [frame.pts for frame in decoder.decode(packet(40))] == [500]
    with pytest.raises(VideoError, match=r"a time that was not asked of it \(tick 50\)"):
        decoder.decode(packet(45))


def test_packets_that_no_frame_came_of_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = scripted(monkeypatch, [[]] * 1000 + [[0]])
    for pts in range(1000):
        decoder.decode(packet(pts))
    with pytest.raises(VideoError, match=r"a time that was not asked of it \(tick 0\)"):
        decoder.decode(packet(1000))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(packet(None), "one of its packets has no time"), (packet(5, changed=True), "its format changes on the way")],
)
def test_packets_that_cannot_be_followed_are_refused(
    wrong: Any,  # noqa: ANN401 - a packet
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, _ = scripted(monkeypatch, [])
    with pytest.raises(VideoError, match=f"NVIDIA's decoder is not used for this file: {words}"):
        decoder.decode(wrong)
