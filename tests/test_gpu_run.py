"""The prepared run for a GPU, in miniature: on the pretend device, its networks narrowed, on a few digits in colour."""

import copy
import io
import json

import numpy as np
import pytest
from PIL import Image
from pretend_device import NAME

from srs.common import machine
from srs.training.train import _Run
from study import gpu_run

NARROW = {"channels": [8, 8, 8, 8], "head_channels": [2, 2, 2, 2], "final_channels": 8}


@pytest.fixture
def narrow(monkeypatch):
    """The profile `paper` with networks that train in seconds."""
    profile = copy.deepcopy(gpu_run.profile())
    for name, width in (("small", 3), ("large", 4)):
        overrides = {field: value[:width] if field != "final_channels" else value for field, value in NARROW.items()}
        profile["models"][name]["overrides"] |= overrides
        profile["training"][name] |= {"batch_size": 10, "unrolled_layers": 2, "unrolled_steps": gpu_run.SCHEDULED * 6}
        profile["training"][name]["evaluation"] = {"method": "anderson", "steps": 2}
    monkeypatch.setattr(machine, "prepare_device", lambda: NAME)
    monkeypatch.setattr(gpu_run, "profile", lambda: profile)
    monkeypatch.setattr(gpu_run, "ROWS", ("MDEQ-1A", "SRS-MDEQ-1A", "AS-MDEQ-1N"))
    monkeypatch.setattr(gpu_run, "REFERENCE", "MDEQ-1A")


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """Training images as one stream of JPEG files, test images as pixels."""
    folder = tmp_path_factory.mktemp("data")
    pixels = (digits.train.pixels[:50, 0] * 15).astype(np.uint8)
    pictures = [np.asarray(Image.fromarray(one).resize((32, 32)).convert("RGB")) for one in pixels]
    streams = []
    for one in pictures[:40]:
        Image.fromarray(one).save(stream := io.BytesIO(), "JPEG")
        streams.append(np.frombuffer(stream.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, streams)])
    known = {"classes": np.array(digits.classes)}
    np.savez(folder / "train.npz", jpeg=np.concatenate(streams), offsets=offsets, labels=digits.train.labels[:40], **known)
    np.savez(folder / "test.npz", images=np.stack(pictures[40:]), labels=digits.train.labels[40:50], **known)
    return str(folder / "train.npz"), str(folder / "test.npz")


def test_the_run_stops_in_time_goes_on_and_tells_all(narrow, files, tmp_path, monkeypatch, capsys):
    few = ["--epochs", "1", "--points", "10", "--images", "2", "--n", "12", "--minutes", "60"]
    ask = [*files, "--into", str(tmp_path / "gpu"), *few]
    steps, one_step = [], _Run._one_step

    def counted(run):
        one_step(run)
        run.save()
        steps.append(run.step)
        if steps == [1]:
            raise gpu_run.TimeIsUp

    monkeypatch.setattr(_Run, "_one_step", counted)
    with pytest.raises(SystemExit, match="run the same command again"):
        gpu_run.main(ask)
    gpu_run.main(ask)
    assert steps == [1, 2, 1, 2]  # of one network, then of the other
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "MDEQ-" in line]
    assert [line[1] for line in rows] == [*gpu_run.ROWS] * 2 and rows[3][0] == "| LARGE"
    assert rows[0][8] == "not known |" and rows[3][8] == "1.06 |"  # as published
    found = {row: json.loads((tmp_path / "gpu/small" / f"{row}.json").read_text()) for row in gpu_run.ROWS}
    assert found["MDEQ-1A"]["evaluations"] == found["AS-MDEQ-1N"]["evaluations"] == [24] * 2
    assert all(24 * 10 <= evaluations <= 24 * 10 + 12 for evaluations in found["SRS-MDEQ-1A"]["evaluations"])  # warm-up, audit
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "gpu").rglob("*.json")}
    gpu_run.main(ask)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "gpu").rglob("*.json")}
    with pytest.raises(SystemExit, match="images = 3, not 2"):
        gpu_run.main([*ask, "--images", "3"])


def test_the_alarm_interrupts_the_work(narrow, files, tmp_path):
    with pytest.raises(SystemExit, match="Not done after 0.0001 minutes"):
        gpu_run.main([*files, "--into", str(tmp_path), "--minutes", "0.0001"])


@pytest.mark.parametrize(
    "option, value, told",
    [
        ("epochs", 0, "epochs 0 is out of range: 1 or more"),
        ("n", 0, "n 0 is out of range: 1 or more"),
        ("n", 5, "n: .* 5 is too small"),
        ("batch-size", 2_000_000, "batch-size: .*less than or equal to 1000000"),
        ("images", 11, "images 11 is out of range: .*test.npz has 10"),
        ("minutes", 0, "minutes 0 is out of range: more than 0"),
        ("minutes", "nan", "minutes nan is out of range: more than 0"),
        ("minutes", 1e15, "minutes 1e\\+15 is out of range: .*less than 1e6"),
    ],
)
def test_options_out_of_range_are_named_and_write_nothing(files, tmp_path, option, value, told):
    with pytest.raises(SystemExit, match=f"^--{told}"):
        gpu_run.main([*files, "--into", str(tmp_path / "gpu"), f"--{option}", str(value)])
    assert not (tmp_path / "gpu").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", "array"])
@pytest.mark.parametrize("which", [0, 1])
def test_files_that_are_none_are_named_before_anything_is_written(files, tmp_path, which, content):
    bad, given = tmp_path / "bad.npz", list(files)
    if content == "array":
        with bad.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        bad.write_bytes(content)
    given[which] = str(bad)
    with pytest.raises(SystemExit, match="bad.npz is no .npz with labels"):
        gpu_run.main([*given, "--into", str(tmp_path / "gpu")])
    assert not (tmp_path / "gpu").exists()


def test_its_rows_are_the_papers():
    rows = [gpu_run.cast_by(row) for row in gpu_run.ROWS]
    assert [row.kind for row in rows] == ["standard", "standard", "serialized", "serialized", "standard"]
    assert [row.solver.steps for row in rows] == [30, 30, 1, 3, 1] and rows[1].solver.stop == "relative"
    assert rows[4].start == "learned" and rows[2].chains == 400


def test_other_files_are_refused(files, tmp_path):
    np.savez(tmp_path / "train.npz", pixels=np.zeros(3))
    with pytest.raises(SystemExit, match="is no .npz with labels, classes"):
        gpu_run.main([str(tmp_path / "train.npz"), files[1], "--into", str(tmp_path / "gpu")])
