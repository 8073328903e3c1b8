import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from srs.data.datasets import DataConfig, Dataset, augment, evenly_spaced, prepare
from srs.deq.solvers import Solver
from srs.training.train import Training, train


def test_digits_are_the_real_ones_split_once_and_for_all(digits):
    assert [len(p) for p in (digits.train, digits.validation, digits.test)] == [1197, 100, 500]
    assert digits.train.pixels.shape[1:] == (1, 8, 8)
    everything = np.concatenate([p.pixels for p in (digits.train, digits.validation, digits.test)])
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
    assert [set(np.bincount(part.labels)) for part in (data.train, data.validation, data.test)] == [{440}, {10}, {50}]
    assert data.model_fields()["image_size"] == 32


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


LAYOUTS = {"cifar10": ("test", ["cat", "dog"], "png"), "imagenet": ("val", ["n01440764", "n02084071"], "JPEG")}


def _write_folder(root, layout):
    """The two classes of ``layout``: digits 0 and 1 as images of 40x48 pixels, 20 of each for training, 5 held out."""
    held_out, classes, suffix = LAYOUTS[layout]
    bunch = load_digits()
    for label, name in enumerate(classes):
        for i, pixels in enumerate(bunch.images[bunch.target == label][:25]):
            path = root / ("train" if i < 20 else held_out) / name
            path.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * 15).astype(np.uint8)).resize((40, 48), Image.Resampling.NEAREST)
            (image if i % 2 else image.convert("RGB")).save(path / f"{name}_{i}.{suffix}")  # ImageNet has some in grey, too
    return root


def _folder_config(root, **fields):
    return DataConfig(name="folder", root=str(root), **{"image_size": 32, "validation": 6} | fields)


@pytest.fixture(params=LAYOUTS)
def image_folder(request, tmp_path):
    return _write_folder(tmp_path, request.param)


@pytest.fixture
def cifar_folder(tmp_path):
    return _write_folder(tmp_path, "cifar10")


def _files(part):
    return {str(Path(part.root) / os.fsdecode(file)) for file in part.files}


def test_a_folders_split_is_that_of_its_folders(image_folder):
    data = prepare(_folder_config(image_folder))
    held_out, classes, suffix = LAYOUTS["cifar10" if (image_folder / "test").is_dir() else "imagenet"]
    assert data.classes == classes
    assert [np.bincount(part.labels).tolist() for part in (data.train, data.validation, data.test)] == [
        [17, 17],
        [3, 3],
        [5, 5],
    ]
    assert _files(data.train).isdisjoint(_files(data.validation))
    assert _files(data.train) | _files(data.validation) == set(map(str, (image_folder / "train").glob(f"*/*.{suffix}")))
    assert _files(data.test) == set(map(str, (image_folder / held_out).glob(f"*/*.{suffix}")))
    for part in (data.train, data.validation, data.test):
        assert all(Path(os.fsdecode(file)).parts[1] == classes[label] for file, label in zip(part.files, part.labels))


def test_a_data_set_tells_what_it_has(cifar_folder, digits):
    data = prepare(_folder_config(cifar_folder))
    suffix = LAYOUTS["cifar10"][2]
    counts = [len(data.train), len(data.validation), len(data.test)]
    expected = "{} training images (.{x}), {} held-out images (.{x}), {} test images (.{x}).".format(*counts, x=suffix.lower())
    assert data.described() == expected
    assert digits.described().endswith(f"{len(digits.test)} test images.") and "(" not in digits.described()


def test_a_folders_images_are_resized_and_cropped_as_they_are_asked_for(cifar_folder):
    data = prepare(_folder_config(cifar_folder, image_size=20, resize=30))
    rows = np.array([3, 0, 33])
    images = data.train.images(rows)
    assert images.shape == (3, *data.train.shape) == (3, 3, 20, 20) and images.dtype == torch.float32
    for image, row in zip(images, rows):
        with Image.open(cifar_folder / os.fsdecode(data.train.files[row])) as source:
            scaled = source.convert("RGB").resize((30, 36), Image.Resampling.BILINEAR).crop((5, 8, 25, 28))
        assert torch.equal(image, torch.from_numpy(np.array(scaled)).permute(2, 0, 1) / 255)
    assert torch.equal(images, data.train.images(rows))
    assert data.model_fields()["image_size"] == 20
    whole = prepare(_folder_config(cifar_folder, image_size=40)).train  # resize: image_size
    assert whole.images(np.array([0])).max() > 0.9 and len(whole.images(np.array([], int))) == 0


def test_a_folders_statistics_are_stored_and_those_of_evenly_spaced_images(cifar_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("srs.data.datasets.MEASURED", 7)
    data = prepare(_folder_config(cifar_folder))
    images = data.train.images(evenly_spaced(34, 7)).double()
    std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    assert data.statistics()["mean"] == pytest.approx(mean.tolist(), abs=1e-6)
    assert data.statistics()["std"] == pytest.approx(std.tolist(), abs=1e-6)
    data.save(tmp_path / "index.npz")
    monkeypatch.setattr("srs.data.datasets.FolderPart.decode", None)
    assert Dataset.load(tmp_path / "index.npz").statistics() == data.statistics()


def test_a_folders_file_is_its_index_and_byte_stable(image_folder, tmp_path):
    for name in ("a", "b"):
        prepare(_folder_config(image_folder)).save(tmp_path / f"{name}.npz")
    loaded = Dataset.load(tmp_path / "a.npz")
    loaded.save(tmp_path / "c.npz")
    written = [(tmp_path / f"{name}.npz").read_bytes() for name in "abc"]
    assert written[0] == written[1] == written[2]
    assert all(array.ndim <= 1 or key == "moments" for key, array in np.load(tmp_path / "a.npz").items())  # no pixels
    before = prepare(_folder_config(image_folder))
    assert torch.equal(loaded.validation.images(np.arange(6)), before.validation.images(np.arange(6)))


def test_a_folders_file_changes_with_the_folder(cifar_folder, tmp_path):
    data = prepare(_folder_config(cifar_folder))
    data.save(tmp_path / "before.npz")
    path = cifar_folder / os.fsdecode(data.test.files[0])
    path.write_bytes(path.read_bytes() + b"\0")
    prepare(_folder_config(cifar_folder)).save(tmp_path / "resized.npz")
    path.rename(path.with_stem("renamed"))
    prepare(_folder_config(cifar_folder)).save(tmp_path / "renamed.npz")
    assert len({(tmp_path / f"{name}.npz").read_bytes() for name in ("before", "resized", "renamed")}) == 3


def test_a_folder_that_changed_under_its_index_is_an_error(cifar_folder, tmp_path):
    data = prepare(_folder_config(cifar_folder))
    data.save(tmp_path / "index.npz")
    first, second, third = (cifar_folder / os.fsdecode(file) for file in data.train.files[:3])
    first.unlink()
    with pytest.raises(FileNotFoundError, match=f"data.root = .*{first.name} is gone; .*dvc repro -f prepare"):
        data.train.images(np.array([0]))
    second.write_bytes(b"short")
    with pytest.raises(ValueError, match=f"{second.name} has 5 bytes, not .*: run the prepare stage again"):
        data.train.images(np.array([1]))
    third.write_bytes(bytes(data.train.sizes[2]))
    with pytest.raises(ValueError, match=f"{third.name} is not an image that can be read"):
        data.train.images(np.array([2]))
    (cifar_folder / "train").rename(tmp_path / "elsewhere")
    moved = cifar_folder.parent / "moved"
    cifar_folder.rename(moved)
    with pytest.raises(FileNotFoundError, match=f"data.root = '{cifar_folder}': no such folder; .*index.npz is an index"):
        Dataset.load(moved / "index.npz")


def test_imagenets_unlabelled_test_images_are_not_taken_for_a_test_part(tmp_path):
    _write_folder(tmp_path, "imagenet")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (40, 48)).save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert len(prepare(_folder_config(tmp_path)).test) == 10


def test_a_model_trains_on_a_folder(cifar_folder, tmp_path):
    data = prepare(_folder_config(cifar_folder, image_size=8))
    config = Training(epochs=1, batch_size=34, unrolled_steps=1, unrolled_layers=2, evaluation=Solver(steps=2))
    result = train("mdeq-tiny", {}, data, DataConfig(crop_padding=1, flip=True), config, tmp_path / "run.pt")
    assert np.isfinite(result["history"][-1]["loss"])


def test_missing_data_says_how_to_get_it(tmp_path, image_folder):
    with pytest.raises(FileNotFoundError, match="no folder .*train.*expected train/<class>"):
        prepare(DataConfig(name="folder", root=str(tmp_path / "absent"), image_size=16))
    with pytest.raises(ValidationError, match="needs root .* and image_size"):
        DataConfig(name="folder")
    held_out = "test" if (image_folder / "test").is_dir() else "val"
    first, *_ = sorted((image_folder / held_out).iterdir())
    first.rename(first.with_name("zebra"))
    with pytest.raises(ValueError, match=rf"'{first.name}'\] are in train/ only and \['zebra'\] in {held_out}/ only"):
        prepare(_folder_config(image_folder))
    (image_folder / "train" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="data.root = .*, train/: .*empty"):
        prepare(_folder_config(image_folder))


def test_fields_that_do_not_fit_the_source():
    with pytest.raises(ValidationError, match="resize = 256 is not for 'digits'"):
        DataConfig(resize=256)
    with pytest.raises(ValidationError, match="resize = 100 must be at least image_size = 224"):
        DataConfig(name="folder", root="images", image_size=224, resize=100)


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
    with pytest.raises(ValueError, match="test = 1795 does not fit 1797 images of 10 classes: ask for 10 to 1787"):
        prepare(DataConfig(test=1795))


def test_the_data_page_shows_data_sets_that_are_accepted():
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    configs = [DataConfig(**fields) for block in shown for fields in block.values()]
    assert [config.name for config in configs] == ["cifar10", "folder", "cifar10", "folder"]
    for name in DataConfig.model_fields["name"].annotation.__args__:
        assert f"| `{name}` |" in page
