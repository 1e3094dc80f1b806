"""The backbone against attention written out token by token, and against what its definition promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bevkd_deploy.models.bevfusion.swin import SwinTransformer, _PatchMerging, _WindowAttention, _windows

WINDOW, HEADS, CHANNELS = 3, 2, 8


@pytest.fixture(scope="module")
def small() -> SwinTransformer:
    torch.manual_seed(0)
    network = SwinTransformer(CHANNELS, (2, 2), (2, 4), WINDOW, out_indices=(0, 1)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    return network


def attention_by_hand(layer: _WindowAttention, x: Tensor, shift: int) -> Tensor:
    """One map [H, W, C], by the paper's words: pad, roll, cut into windows, attend to the same region, undo."""
    height, width, channels = x.shape
    padded = functional.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    rows, columns = padded.shape[:2]
    query, key, value = layer.qkv(padded).unflatten(-1, (3, HEADS, -1)).unbind(2)  # [rows, columns, heads, c]
    table = layer.relative_position_bias_table.view(2 * WINDOW - 1, 2 * WINDOW - 1, HEADS)
    out = torch.zeros(rows, columns, channels)
    # (row, column) of the rolled grid; `source` is the token that stands there.
    source = {(r, c): ((r + shift) % rows, (c + shift) % columns) for r in range(rows) for c in range(columns)}
    region = {place: (source[place][0] < shift, source[place][1] < shift) for place in source}
    for place, token in source.items():
        window = [p for p in source if (p[0] // WINDOW, p[1] // WINDOW) == (place[0] // WINDOW, place[1] // WINDOW)]
        heads = []
        for head in range(HEADS):
            scores = []
            for other in window:
                score = query[token][head] @ key[source[other]][head] * (channels // HEADS) ** -0.5
                score = score + table[place[0] - other[0] + WINDOW - 1, place[1] - other[1] + WINDOW - 1, head]
                scores.append(score - 100.0 * (region[place] != region[other]))
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(w * value[source[other]][head] for w, other in zip(weights, window, strict=True)))
        out[token] = torch.cat(heads)
    return layer.proj(out[:height, :width])


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(6, 3), (4, 5), (2, 7)])
def test_window_attention_is_that_of_the_paper(height: int, width: int, shift: int) -> None:
    torch.manual_seed(1)
    layer = _WindowAttention(CHANNELS, HEADS, WINDOW)
    torch.nn.init.normal_(layer.relative_position_bias_table)
    maps = torch.randn(2, height, width, CHANNELS)
    with torch.no_grad():
        ours = layer(maps.flatten(1, 2), _windows(height, width, WINDOW, shift, maps.device))
        for image, result in zip(maps, ours, strict=True):
            expected = attention_by_hand(layer, image, shift)
            torch.testing.assert_close(result.view_as(image), expected, rtol=1e-5, atol=1e-5)


def test_merging_takes_the_neighbours_of_a_channel_together() -> None:
    torch.manual_seed(2)
    layer = _PatchMerging(2)
    layer.norm.weight.data.uniform_(0.5, 2.0)
    x = torch.randn(1, 3, 5, 2)  # odd: padded with zeros to 4 by 6
    with torch.no_grad():
        ours = layer(x)
        assert ours.shape == (1, 2, 3, 4)
        neighbours = [x[0, 2, 2, 0], x[0, 2, 3, 0], 0.0, 0.0, x[0, 2, 2, 1], x[0, 2, 3, 1], 0.0, 0.0]
        expected = layer.reduction(layer.norm(torch.tensor(neighbours)))
        torch.testing.assert_close(ours[0, 1, 1], expected)


def test_maps_have_their_strides_at_any_image_size(small: SwinTransformer) -> None:
    with torch.no_grad():
        maps = small(torch.zeros(2, 3, 37, 50))
    assert small.out_channels == [8, 16]
    assert [tuple(level.shape) for level in maps] == [(2, 8, 10, 13), (2, 16, 5, 7)]


def test_an_image_is_padded_with_zeros_at_its_lower_right_end(small: SwinTransformer) -> None:
    image = torch.randn(1, 3, 13, 18, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for ours, padded in zip(small(image), small(functional.pad(image, (0, 2, 0, 3))), strict=True):
            torch.testing.assert_close(ours, padded, rtol=0, atol=0)


def test_images_of_a_batch_do_not_mix(small: SwinTransformer) -> None:
    """Both ways through the network: image by image, as on a processor, and all at once, as on a GPU."""
    images = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        together = small(images)
        for ours, at_once in zip(together, small._maps(images), strict=True):
            torch.testing.assert_close(ours, at_once, rtol=1e-5, atol=1e-5)
        for ours, alone in zip(together, small(images[1:2]), strict=True):
            torch.testing.assert_close(ours[1:2], alone, rtol=0, atol=0)


def test_swin_t_has_the_published_size() -> None:
    with torch.device("meta"):
        network = SwinTransformer()
    # Swin-T's 28,288,354 less the classifier's 769,000 and the last norm's 1,536, plus a norm for each of the maps.
    assert sum(p.numel() for p in network.parameters()) == 28_288_354 - 769_000 - 1_536 + 2 * (192 + 384 + 768)
    assert network.out_channels == [192, 384, 768]
