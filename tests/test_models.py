import pytest
import torch
from pydantic import ValidationError
from torch import nn

from srs import models
from srs.__main__ import DEFAULT
from srs.checkpoints import FOLDER
from srs.deq.definition import classify
from srs.deq.solvers import Solver
from srs.models.mdeq import MDEQConfig, VariationalDropout
from srs.models.starts import WIDTH, ConvolutionalStart


def _count(preset, **overrides):
    return sum(p.numel() for p in models.build(preset, **overrides).parameters())


def test_sizes_on_cifar10_are_those_in_the_readme():
    from pathlib import Path

    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for preset in ("mdeq-small", "mdeq-large"):
        assert f"{_count(preset):,}" in readme
    assert _count("mdeq-small") == 249_883  # as released


def test_a_checkpoint_from_before_a_field_is_the_model_that_it_was():
    saved = torch.load(FOLDER / DEFAULT / "model.pt", weights_only=True)["model"]
    assert "bottleneck_affine" not in saved["config"]
    assert sum(p.numel() for p in models.restore(saved).parameters()) == 250_471
    with torch.no_grad():
        logits, _ = classify(
            models.load(FOLDER / DEFAULT / "model.pt"), torch.linspace(0, 1, 3_072).view(1, 3, 32, 32), Solver()
        )
    known = [6.545, -10.3275, 3.6468, -1.0678, 3.4806, -1.3223, -3.5541, -4.4256, 1.0193, -9.1277]
    assert torch.allclose(logits, torch.tensor([known]), atol=1e-3)


def test_convolutions_start_as_in_the_released_code():
    model = models.build("mdeq-large", image_size=8)
    conv = model.layer.blocks[3].conv1  # weight normalization; PyTorch's: uniform, of variance 1 / 3 fan_in
    assert conv.weight.std().item() == pytest.approx((3 * 256 * 9) ** -0.5, rel=0.02)
    assert conv.weight.abs().max() <= (256 * 9) ** -0.5
    for parameter in (model.layer.paths["2_to_3"].layers[0].weight, model.classifier.final[0].bias):
        assert parameter.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    "preset, size, channels",
    [("mdeq-small", 32, 3), ("mdeq-small", 8, 1), ("mdeq-large", 32, 3), ("mdeq-small-imagenet", 64, 3)],
)
def test_shapes(preset, size, channels):
    model = models.build(preset, image_size=size, mean=(0.5,) * channels, std=(0.2,) * channels, num_classes=7).eval()
    with torch.no_grad():
        logits, solution = classify(model, torch.rand(2, channels, size, size), Solver(steps=2))
    assert logits.shape == (2, 7)
    side = model.config.resolution
    assert solution.z.shape[1] == sum(c * (side >> i) ** 2 for i, c in enumerate(model.config.channels))


def test_imagenet_stem_downsamples_four_times():
    model = models.build("mdeq-small-imagenet", image_size=64)
    assert model.inject(torch.rand(2, 3, 64, 64)).shape == (2, 32, 16, 16)


def test_injection_enters_the_highest_resolution_only():
    model = models.build("mdeq-small", image_size=8).eval()
    blocks = []
    for block in model.layer.blocks:
        block.register_forward_pre_hook(lambda module, inputs: blocks.append(inputs[1] is not None))
    injection = model.inject(torch.rand(1, 3, 8, 8))
    model.f(model.initial_state(injection), injection)
    assert blocks == [True, False, False]


def test_normalization_is_the_first_layer():
    x = torch.rand(2, 1, 8, 8)
    model = models.build("mdeq-tiny", image_size=8, mean=(0.3,), std=(0.4,)).eval()
    plain = models.build("mdeq-tiny", image_size=8, mean=(0.0,), std=(1.0,)).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(model.inject(x), plain.inject((x - 0.3) / 0.4), atol=1e-6)


def test_rows_do_not_depend_on_their_neighbours(trained, digits):
    x = digits.test.images(torch.arange(12).numpy())
    with torch.no_grad():
        together, _ = classify(trained, x, Solver())
        for row in (0, 5, 11):
            alone, _ = classify(trained, x[row : row + 1], Solver())
            assert torch.allclose(alone[0], together[row], atol=1e-4)


def test_folding_weight_normalization_changes_nothing_but_the_parameters():
    model = models.build("mdeq-small", image_size=8, mean=(0.3,), std=(0.4,)).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from initialization, so that magnitude and direction differ
            p.add_(0.05 * torch.randn_like(p))
        injection = model.inject(torch.rand(3, 1, 8, 8))
        z = torch.randn_like(model.initial_state(injection))
        before = model.f(z, injection)
        normalized = sum("original" in name for name, _ in model.named_parameters())
        after = model.fold().f(z, injection)
    assert normalized == 2 * 3 * 3  # magnitude and direction; two block convolutions and one post-fusion on 3 branches
    assert sum("original" in name for name, _ in model.named_parameters()) == 0
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 32])  # upsampling by products with all pixels; with columns; channels side by side
def test_a_loaded_model_is_the_trained_one_whatever_is_merged_and_however_a_batch_is_cut(size):
    model = models.build("mdeq-small", image_size=size, mean=(0.3,), std=(0.4,)).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        x = torch.rand(11, 1, size, size)
        model.classifier(model.unpack(model.f(model.initial_state(model.inject(x)), model.inject(x))))  # running statistics
        model.eval()
        before = classify(model, x, Solver(steps=5))[0]
        widest = 4 * 40 * size**2  # bytes of an activation
        start = ConvolutionalStart(8, model.state_shapes, WIDTH).eval()
        begun = start(model.inject(x))
        folded = models.restore(models.state(model)).eval()
        folded.starts = nn.ModuleDict({"learned": start})
        folded.fold(cache=3 * widest)
        assert folded.rows_at_once == 3 and not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
        after = classify(folded, x, Solver(steps=5))[0]
        assert torch.allclose(begun, folded.starts["learned"](folded.inject(x)), atol=1e-4) and folded.inject(x).is_contiguous()
    assert torch.allclose(before, after, atol=1e-4)
    beside = [block.conv1.weight.is_contiguous(memory_format=torch.channels_last) for block in folded.layer.blocks]
    assert beside == [size == 32, False, False]
    around = [part.weight.is_contiguous(memory_format=torch.channels_last) for part in (folded.stem[3], start.heads[0])]
    assert around == [size == 32] * 2
    with pytest.raises(ValueError, match="training mode cannot be folded"):
        model.train().fold()


def test_dropout_drops_whole_channels_of_a_row():
    dropout = VariationalDropout(0.25)
    out = dropout(torch.ones(200, 30, 4, 4))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    kept = out[:, :, 0, 0]
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (kept > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert len(kept.unique(dim=0)) == 200  # each row's own


def test_dropout_mask_is_fixed_within_a_solve_and_new_after():
    model = models.build("mdeq-small", image_size=8, mean=(0.3,), std=(0.4,))
    injection = model.inject(torch.rand(4, 1, 8, 8))
    z = torch.randn_like(model.initial_state(injection))
    first = model.f(z, injection)
    assert torch.equal(first, model.f(z, injection))
    with pytest.raises(ValueError, match="the dropout mask is of 4 rows, the batch has 3: draw_dropout"):
        model.f(z[:3], injection[:3])
    model.draw_dropout()
    assert not torch.allclose(first, model.f(z, injection))
    model.eval()
    assert torch.equal(model.f(z, injection), model.f(z, injection))


def test_checkpoint_holds_the_configuration(tmp_path):
    model = models.build("mdeq-tiny", image_size=8, mean=(0.3,), std=(0.4,), num_classes=3).eval()
    torch.save({"model": models.state(model)}, tmp_path / "model.pt")
    loaded = models.load(tmp_path / "model.pt")
    x = torch.rand(2, 1, 8, 8)
    assert not loaded.training and loaded.config == model.config
    assert torch.allclose(loaded.inject(x), model.inject(x))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        models.load(tmp_path / "absent.pt")


def test_clear_errors():
    with pytest.raises(ValueError, match="preset = 'mdeq-smal' is unknown: choose one of mdeq-small"):
        models.build("mdeq-smal")
    with pytest.raises(ValidationError, match="dropuot"):
        models.build("mdeq-small", dropuot=0.1)
    for bad, named in [
        (dict(head_channels=(7, 14)), "head_channels"),
        (dict(image_size=30), "multiple of 4"),
        (dict(channels=(9, 16, 32)), "multiples of groups"),
        (dict(std=(0.0, 1.0, 1.0)), "positive"),
    ]:
        with pytest.raises(ValidationError, match=named):
            models.build("mdeq-small", **bad)
    with pytest.raises(ValidationError, match="frozen"):
        MDEQConfig(channels=(8,), head_channels=(4,), final_channels=8).dropout = 0.5
