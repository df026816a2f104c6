"""The PyTorch towers: official names and shapes, and each piece against an independent computation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from milnce_convert.towers import S3D, TextConfig, TextTower, TowersConfig
from milnce_convert.towers.s3d import ConvolutionUnit, SelfGating, ZeroPaddedMaxPool, space_to_depth

# The published channel plan: inputs of the block, then b0, b1_a, b1_b, b2_a, b2_b, b3_b.
PLAN = """
3b 192  64  96 128 16  32  32
3c 256 128 128 192 32  96  64
4b 480 192  96 208 16  48  64
4c 512 160 112 224 24  64  64
4d 512 128 128 256 24  64  64
4e 512 112 144 288 32  64  64
4f 528 256 160 320 32 128 128
5b 832 256 160 320 32 128 128
5c 832 384 192 384 48 128 128
"""

Shapes = dict[str, tuple[int, ...]]


def _norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def _pointwise(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.conv1.weight": (outputs, inputs, 1, 1, 1), **_norm(f"{name}.bn1", outputs)}


def _separable(name: str, inputs: int, outputs: int) -> Shapes:
    return {
        f"{name}.conv1.weight": (outputs, inputs, 1, 3, 3),
        **_norm(f"{name}.bn1", outputs),
        f"{name}.conv2.weight": (outputs, outputs, 3, 1, 1),
        **_norm(f"{name}.bn2", outputs),
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def official_video_shapes() -> Shapes:
    """Return the names and shapes of the released checkpoint's video part."""
    shapes = {
        "conv1.conv1.weight": (64, 24, 2, 4, 4),
        **_norm("conv1.bn1", 64),
        **_pointwise("conv_2b", 64, 64),
        **_separable("conv_2c", 64, 192),
        **_linear("gating.fc", 192, 192),
        **_linear("fc", 1024, 512),
    }
    for line in PLAN.split("\n")[1:-1]:
        block = f"mixed_{line.split()[0]}"
        inputs, b0, b1_a, b1_b, b2_a, b2_b, b3_b = map(int, line.split()[1:])
        shapes |= _pointwise(f"{block}.conv_b0", inputs, b0) | _pointwise(f"{block}.conv_b1_a", inputs, b1_a)
        shapes |= _separable(f"{block}.conv_b1_b", b1_a, b1_b) | _pointwise(f"{block}.conv_b2_a", inputs, b2_a)
        shapes |= _separable(f"{block}.conv_b2_b", b2_a, b2_b) | _pointwise(f"{block}.conv_b3_b", inputs, b3_b)
        for gate, channels in enumerate((b0, b1_b, b2_b, b3_b)):
            shapes |= _linear(f"{block}.gating_b{gate}.fc", channels, channels)
    return shapes


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_video_names_and_shapes_are_the_official_checkpoints() -> None:
    expected = official_video_shapes()
    assert len(expected) == 532
    assert _shapes(S3D()) == expected


def test_text_names_and_shapes_are_the_official_checkpoints() -> None:
    assert _shapes(TextTower()) == {
        "word_embd.weight": (66250, 300),
        **_linear("fc1", 300, 2048),
        **_linear("fc2", 2048, 512),
    }


def test_plain_stem_has_a_3x7x7_stride_2_convolution_and_takes_odd_sizes() -> None:
    tower = S3D(TowersConfig.scaled(0.125, space_to_depth=False).video).eval()
    conv = tower.conv1.conv1
    assert tuple(conv.weight.shape) == (8, 3, 3, 7, 7)
    assert (conv.stride, conv.padding) == ((2, 2, 2), (1, 3, 3))
    assert set(_shapes(tower)) == set(official_video_shapes())
    with torch.no_grad():
        assert tower(torch.rand(1, 3, 5, 31, 33))["video_embedding"].shape == (1, 512)
    assert tower.config.size_multiple == 1


def test_scaled_widths_are_multiples_of_8_and_joined_consistently() -> None:
    config = TowersConfig.scaled(0.25, rows=11, embedding=32)
    assert (config.video.stem, config.video.conv_2c) == (16, 48)
    assert config.video.blocks["mixed_5c"] == (96, 48, 96, 16, 32, 32)
    assert config.video.blocks["mixed_3b"] == (16, 24, 32, 8, 8, 8)
    assert config.video.mixed_5c == 96 + 96 + 32 + 32
    assert config.text == TextConfig(rows=11, word=72, hidden=512, embedding=32)
    with torch.no_grad():
        outputs = S3D(config.video).eval()(torch.rand(1, 3, 4, 16, 16))
    assert outputs["video_embedding"].shape == (1, 32)
    assert outputs["mixed_5c"].shape == (1, 256)
    assert TowersConfig.scaled(1.0) == TowersConfig()


@pytest.mark.parametrize("shape", [(2, 3, 2, 2, 2), (1, 3, 4, 6, 2), (1, 2, 6, 2, 8)])
def test_space_to_depth_orders_channels_by_time_height_width_then_colour(shape: tuple[int, ...]) -> None:
    video = torch.rand(shape)
    cells = space_to_depth(video).numpy()
    batch, colours, frames, height, width = shape
    assert cells.shape == (batch, 8 * colours, frames // 2, height // 2, width // 2)
    for n, c, t, y, x in itertools.product(*map(range, shape)):
        channel = (((t % 2) * 2 + y % 2) * 2 + x % 2) * colours + c
        assert cells[n, channel, t // 2, y // 2, x // 2] == video[n, c, t, y, x]


def _one_axis_maximum(values: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Pool the last axis by the port's rule, one window at a time."""
    total = max(kernel - stride, 0)
    before = total // 2
    padded = [0.0] * before + [float(value) for value in values] + [0.0] * (total - before)
    count = math.ceil(max(len(padded) - kernel, 0) / stride) + 1
    starts = [index * stride for index in range(count) if index * stride < len(padded)]
    return np.array([max(padded[start : start + kernel]) for start in starts], np.float32)


@pytest.mark.parametrize("sizes", list(itertools.product(range(1, 10), (3, 6, 7))))
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_pooling_equals_a_loop_over_windows(
    sizes: tuple[int, int], kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    height, width = sizes
    frames = (height + 1) % 5 + 1
    generator = np.random.default_rng(height * 10 + width)
    values = generator.normal(size=(1, 2, frames, height, width)).astype(np.float32)  # negative ones see the zeros
    expected = values
    for axis in range(3):
        expected = np.apply_along_axis(_one_axis_maximum, axis + 2, expected, kernel[axis], stride[axis])
    found = ZeroPaddedMaxPool(kernel, stride)(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(found, expected)


def test_self_gating_scales_channels_by_a_sigmoid_of_all_channel_means() -> None:
    gating = SelfGating(5)
    features = torch.randn(3, 5, 2, 4, 3)
    values = features.numpy().astype(np.float64)
    weight, bias = (part.detach().numpy().astype(np.float64) for part in (gating.fc.weight, gating.fc.bias))
    means = values.reshape(3, 5, -1).mean(axis=2)
    gate = 1 / (1 + np.exp(-(means @ weight.T + bias)))
    with torch.no_grad():
        found = gating(features).numpy()
    np.testing.assert_allclose(found, values * gate.reshape(3, 5, 1, 1, 1), rtol=1e-5, atol=1e-6)


def test_separable_unit_is_space_then_time_each_with_norm_and_relu() -> None:
    unit = ConvolutionUnit(3, 4, (3, 3, 3), padding=(1, 1, 1), separable=True).eval()
    with torch.no_grad():
        for value in unit.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.2, 1.0)
                value.mul_(torch.where(torch.rand_like(value) < 0.3, -1.0, 1.0) if value.ndim == 5 else 1.0)
    features = torch.randn(2, 3, 4, 5, 6)

    def normalised(values: torch.Tensor, norm: nn.BatchNorm3d) -> torch.Tensor:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
        shift = norm.bias - norm.running_mean * scale
        return torch.clamp(values * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1), min=0)

    with torch.no_grad():
        space = nn.functional.conv3d(features, unit.conv1.weight, padding=(0, 1, 1))
        time = nn.functional.conv3d(normalised(space, unit.bn1), unit.conv2.weight, padding=(1, 0, 0))
        torch.testing.assert_close(unit(features), normalised(time, unit.bn2), rtol=1e-5, atol=1e-5)


def test_every_norm_has_the_published_epsilon() -> None:
    epsilons = {module.eps for module in S3D().modules() if isinstance(module, nn.BatchNorm3d)}
    assert epsilons == {1e-5}


@pytest.mark.parametrize("tap", [(0, 0, 0), (1, 3, 3), (0, 2, 1), (1, 0, 2)])
def test_stem_output_is_aligned_as_tensorflow_same(tap: tuple[int, int, int]) -> None:
    """With one tap in the kernel, output (t, y, x) must be the cell at (t + kt, y + ky - 1, x + kx - 1), else 0."""
    tower = S3D(TowersConfig.scaled(0.125).video).eval()
    seen: list[torch.Tensor] = []
    tower.maxpool_2a.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tower.conv1.conv1.weight.zero_()
        tower.conv1.conv1.weight[0, 13, tap[0], tap[1], tap[2]] = 1.0
        video = torch.rand(1, 3, 6, 8, 10)
        tower(video)
    cells = space_to_depth(video)[0, 13].numpy()
    frames, height, width = cells.shape
    expected = np.zeros_like(cells)
    for t, y, x in itertools.product(range(frames), range(height), range(width)):
        source = (t + tap[0], y + tap[1] - 1, x + tap[2] - 1)
        if all(0 <= index < size for index, size in zip(source, cells.shape, strict=True)):
            expected[t, y, x] = cells[source]
    found = seen[0][0, 0].numpy()
    assert found.shape == (frames, height, width)
    np.testing.assert_allclose(found, expected / math.sqrt(1 + 1e-5), rtol=1e-6)


def test_gates_follow_conv_2c_and_end_every_branch() -> None:
    tower = S3D(TowersConfig.scaled(0.125).video)
    gates = [name for name, module in tower.named_modules() if isinstance(module, SelfGating)]
    blocks = [f"mixed_{line.split()[0]}" for line in PLAN.split("\n")[1:-1]]
    assert gates == ["gating", *(f"{block}.gating_b{index}" for block in blocks for index in range(4))]


def test_mixed_5c_is_the_mean_of_the_last_map_and_fc_makes_the_embedding() -> None:
    tower = S3D(TowersConfig.scaled(0.125).video).eval()
    video = torch.rand(2, 3, 8, 32, 48)
    with torch.no_grad():
        outputs, features = tower(video), tower.features(video)
        torch.testing.assert_close(outputs["mixed_5c"], features.flatten(2).mean(dim=2))
        torch.testing.assert_close(outputs["video_embedding"], tower.fc(outputs["mixed_5c"]))


def test_text_tower_equals_numpy_with_pads_taking_part_in_the_maximum() -> None:
    torch.manual_seed(0)
    tower = TextTower(TextConfig(rows=9, word=4, hidden=16, embedding=5))
    table, w1, b1, w2, b2 = (value.detach().numpy() for value in tower.state_dict().values())
    tokens = np.array([[1, 2, 3, 0], [8, 0, 0, 0], [0, 0, 0, 0], [4, 5, 6, 7]])
    hidden = np.maximum(table[tokens] @ w1.T + b1, 0)
    expected = hidden.max(axis=1) @ w2.T + b2
    with torch.no_grad():
        found = tower(torch.from_numpy(tokens))["text_embedding"].numpy()
        unpadded = tower(torch.from_numpy(tokens[:1, :3]))["text_embedding"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(table[0]).min() > 0, "the pad row is a row like any other"
    assert not np.allclose(found[:1], unpadded), "a pad must be able to change the maximum"


def test_the_cut_stem_halves_every_axis_and_the_rest_halves_by_rounding_up() -> None:
    tower = S3D(TowersConfig.scaled(0.125).video).eval()
    with torch.no_grad():
        for frames, height, width in ((32, 64, 96), (30, 72, 88), (2, 2, 2)):
            found = tower.features(torch.rand(1, 3, frames, height, width)).shape[2:]
            spatial = [math.ceil(size / 32) for size in (height, width)]
            assert tuple(found) == (math.ceil(frames / 8), *spatial)
