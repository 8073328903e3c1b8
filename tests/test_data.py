import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from srs.data import DataConfig, Dataset, augment, evenly_spaced, prepare


def test_digits_are_the_real_ones_split_once_and_for_all(digits):
    assert [len(p) for p in (digits.train, digits.validation, digits.test)] == [1197, 100, 500]
    assert digits.train.pixels.shape[1:] == (1, 8, 8)
    everything = np.concatenate([p.pixels for p in (digits.train, digits.validation, digits.test)])
    from sklearn.datasets import load_digits

    assert sorted(map(bytes, everything)) == sorted(map(bytes, load_digits().images.astype(np.uint8)))
    assert np.bincount(digits.test.labels).min() >= 45  # stratified
    again = prepare(DataConfig())
    assert np.array_equal(again.test.pixels, digits.test.pixels)
    images = digits.test.images(np.arange(500))
    assert images.dtype == torch.float32 and images.min() == 0 and images.max() == 1


def test_mnist_padded():
    data = prepare(DataConfig(name="mnist", image_size=32))
    assert data.train.pixels.shape == (4400, 1, 32, 32) and len(data.test) == 500
    assert data.test.pixels[:, :, :2].max() == 0 and data.test.pixels[:, :, 2:30].max() == 255


def test_statistics_are_those_of_the_training_part_in_pixel_units(digits):
    images = digits.train.images(np.arange(len(digits.train)))
    assert digits.statistics()["mean"] == pytest.approx([images.mean().item()], abs=1e-5)
    assert digits.statistics()["std"] == pytest.approx([images.std().item()], abs=1e-4)
    assert digits.model_fields()["num_classes"] == 10 and digits.model_fields()["image_size"] == 8


def test_file_round_trip_is_byte_stable(digits, tmp_path):
    digits.save(tmp_path / "a.npz")
    loaded = Dataset.load(tmp_path / "a.npz")
    loaded.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert loaded.classes == digits.classes and np.array_equal(loaded.test.labels, digits.test.labels)
    with pytest.raises(FileNotFoundError, match="dvc repro prepare"):
        Dataset.load(tmp_path / "absent.npz")


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_folder(image_folder):
    data = prepare(DataConfig(name="folder", root=str(image_folder), image_size=16, validation=4))
    assert data.classes == ["cat", "dog"]
    assert data.train.pixels.shape == (8, 3, 16, 16) and len(data.validation) == 4 and len(data.test) == 4
    assert sorted(data.test.labels) == [0, 0, 1, 1]


def test_missing_data_says_how_to_get_it(tmp_path, image_folder):
    with pytest.raises(FileNotFoundError, match="no folder .*train.*expected train/<class>"):
        prepare(DataConfig(name="folder", root=str(tmp_path / "absent"), image_size=16))
    with pytest.raises(ValidationError, match="needs root .* and image_size"):
        DataConfig(name="folder")
    (image_folder / "test" / "dog").rename(image_folder / "test" / "eel")
    with pytest.raises(ValueError, match="'eel'"):
        prepare(DataConfig(name="folder", root=str(image_folder), image_size=16, validation=2))


def test_cifar10_without_a_network(tmp_path, monkeypatch):
    import torchvision.datasets

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    with pytest.raises(RuntimeError, match="could not be downloaded .*no route.*cifar-10-batches-py"):
        prepare(DataConfig(name="cifar10", root=str(tmp_path)))


def test_cifar10_from_disk(tmp_path, monkeypatch):
    import torchvision.datasets

    class Fake:
        classes = [str(i) for i in range(10)]

        def __init__(self, root, train, download):
            count = 100 if train else 20
            self.data = np.full((count, 32, 32, 3), [10, 20, 30], np.uint8)
            self.targets = [i % 10 for i in range(count)]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = prepare(DataConfig(name="cifar10", root=str(tmp_path), validation=10))
    assert data.train.pixels.shape == (90, 3, 32, 32) and len(data.test) == 20
    assert data.statistics()["mean"] == pytest.approx([10 / 255, 20 / 255, 30 / 255], abs=1e-5)


def test_evenly_spaced_images():
    assert evenly_spaced(10_000, 500).tolist() == list(range(0, 10_000, 20))
    assert len(set(evenly_spaced(7, 5))) == 5
    with pytest.raises(ValueError, match="images = 8 .* ask for 1 to 7"):
        evenly_spaced(7, 8)


def test_augmentation_crops_and_flips():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(200, 1, 1, 1) + 1
    assert torch.equal(augment(x, 0, False), x)
    flipped = augment(x, 0, True)
    kinds = {bytes(image.numpy()) for image in flipped}
    assert kinds == {bytes(x[0].numpy()), bytes(x[0].flip(2).numpy())}
    crops = augment(x, 1, False)
    padded = torch.nn.functional.pad(x[0, 0], [1] * 4)
    allowed = {bytes(padded[i : i + 8, j : j + 8].contiguous().numpy()) for i in range(3) for j in range(3)}
    assert {bytes(image[0].contiguous().numpy()) for image in crops} == allowed


def test_a_split_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="test = 1795 does not fit"):
        prepare(DataConfig(test=1795))
