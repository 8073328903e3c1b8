import pytest
import torch
from pydantic import ValidationError

from srs import models
from srs.deq.definition import is_deq

SMALL = dict(depth=8, image_size=8, mean=(0.3,), std=(0.4,))


def _count(**overrides):
    return sum(p.numel() for p in models.build("resnet-110", **overrides).parameters())


def _expected(n, widths, channels, classes, projection=False):
    """Weights of the convolutions, two numbers a channel for each BatchNorm, the linear layer."""
    a, b, c = widths
    total = 9 * channels * a + 2 * a + (c + 1) * classes
    total += n * (18 * a * a + 4 * a)
    for narrow, wide in ((a, b), (b, c)):
        total += 9 * narrow * wide + 9 * wide * wide + 4 * wide + (n - 1) * (18 * wide * wide + 4 * wide)
        total += (narrow * wide + 2 * wide) if projection else 0
    return total


def test_depth_110_has_the_published_size():
    assert _count() == _expected(18, (16, 32, 64), 3, 10) == 1_727_962  # 1.7 million in He et al. 2016, Table 6
    assert _count(shortcut="projection") == _expected(18, (16, 32, 64), 3, 10, projection=True) == 1_730_714
    assert _count(depth=20, widths=(4, 8, 8), num_classes=3, mean=(0.5,), std=(0.2,)) == _expected(3, (4, 8, 8), 1, 3)


def test_depth_counts_the_layers_on_the_longest_path():
    model = models.build("resnet-110")
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 110 and not is_deq(model)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_stages_halve_the_resolution(shortcut):
    model, shapes = models.build("resnet-110", depth=14, num_classes=7, shortcut=shortcut).eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


def test_padded_shortcut_keeps_every_second_pixel_and_adds_zeros():
    block = models.build("resnet-110", depth=8).blocks[1]
    x = torch.randn(2, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2]) and not out[:, 16:].any()


def test_normalization_is_the_first_layer():
    x = torch.rand(2, 1, 8, 8)
    model = models.build("resnet-110", **SMALL).eval()
    plain = models.build("resnet-110", **{**SMALL, "mean": (0.0,), "std": (1.0,)}).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(model(x), plain((x - 0.3) / 0.4), atol=1e-5)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_a_loaded_checkpoint_is_the_model_folded(shortcut, tmp_path):
    model = models.build("resnet-110", **SMALL, shortcut=shortcut)
    with torch.no_grad():
        for p in model.parameters():  # away from initialization, where BatchNorm is the identity
            p.add_(0.1 * torch.randn_like(p))
        for _ in range(3):
            model(torch.rand(16, 1, 8, 8))  # running statistics
    torch.save({"model": models.state(model)}, tmp_path / "model.pt")
    loaded, x = models.load(tmp_path / "model.pt"), torch.rand(3, 1, 8, 8)
    assert not any(m.training for m in loaded.modules()) and loaded.config == model.config
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in loaded.modules())
    assert torch.allclose(loaded(x), model.eval()(x), atol=1e-4)
    assert not torch.allclose(loaded(x), model.train()(x), atol=1e-2)
    assert torch.allclose(loaded.fold()(x), loaded(x))
    alone = torch.cat([loaded(row[None]) for row in x])
    assert torch.allclose(alone, loaded(x), atol=1e-4)


def test_clear_errors():
    for bad, named in [
        (dict(depth=18), "depth = 18 must be 6n"),
        (dict(depth=2), "depth"),
        (dict(widths=(16, 8, 64)), "must not shrink"),
        (dict(std=(0.0, 1.0, 1.0)), "positive"),
        (dict(dropout=0.1), "dropout"),
        (dict(shortcut="none"), "'pad' or 'projection'"),
    ]:
        with pytest.raises(ValidationError, match=named):
            models.build("resnet-110", **bad)
    with pytest.raises(ValueError, match=r"training mode.*eval"):
        models.build("resnet-110", **SMALL).fold()
