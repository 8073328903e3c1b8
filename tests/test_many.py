"""A row for each image of a data set, whatever kills the run."""

import csv
import json
import os
import re
from dataclasses import asdict
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import srs
from srs import many, models
from srs.certificates import bounds
from srs.common.resume import Journal
from srs.many import Certified

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = list(range(10)) * 4
PAIRS = list(zip(IMAGES, LABELS))
ASK = {"sigma": 0.5, "n": 300, "progress": False}


@pytest.fixture
def model():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "rows.csv"


def test_rows_of_serialized_votes_are_audited_and_the_summary_says_what_is_no_guarantee(linear_deq, out):
    data = [(linear_deq.at_true_radius(r), 0) for r in (0.9, 0.5, -0.5)]
    ask = {"sigma": 0.5, "n": 200, "alpha": 0.05, "audit": 150, "reference": srs.StandardSampler(solver=srs.Solver(steps=10))}
    ask |= {"sampler": srs.SerializedSampler(solver=srs.Solver(steps=2), chains=20)}
    found = srs.certify_many(linear_deq, data, out=out, progress=False, **ask)
    assert found.certificates == [srs.certify(linear_deq, x, index=i, **ask) for i, (x, _) in enumerate(data)]
    assert all(one.audited and one.guarantee for one in found.certificates) and "guarantee" not in str(found)
    loose = srs.certify_many(linear_deq, data, out=f"{out}2", progress=False, estimator="theorem_3_1", **ask)
    assert str(loose).endswith("\nnot a guarantee")


@pytest.mark.parametrize("kind", ["journal", "rows"])
def test_what_is_added_is_on_disk_before_the_call_returns(kind, tmp_path, monkeypatch, model):
    synced, path = [], tmp_path / "file"
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    if kind == "journal":
        file, entries = Journal(path), [{"a": 1}, {"a": 2}]
    else:
        sheet = many._Sheet(path, "csv", srs.Certificate, files=False, classes=None)
        found = asdict(srs.certify(model, IMAGES[0], sigma=0.5, n=300))
        file, entries = sheet, [[{"index": i, "label": 3, "found": found, "seconds": 1.0}] for i in range(2)]
    for count, entry in enumerate(entries, start=1):
        file.append(entry)
        assert len(synced) == count and synced[-1] == path.stat().st_size > 0
    if kind == "journal":
        file.close()


class Interrupted(list):
    """Images of which number ``stop`` ends the run."""

    stop = 25

    def __getitem__(self, i):
        if i == self.stop:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def _interrupt(model, out, **settings):
    with pytest.raises(KeyboardInterrupt):
        srs.certify_many(model, Interrupted(PAIRS), out=out, **ASK | settings)


def _left(out):
    """The files of a run, the lock of one that goes on aside."""
    found = sorted(path.name for path in out.parent.iterdir())
    return [name for name in found if not name.endswith(".lock") or name[1 : -len(".lock")] not in found]


def test_each_row_is_a_certificate(model, out):
    found = srs.certify_many(model, PAIRS, out=out, **ASK)
    alone = [srs.certify(model, image, sigma=0.5, n=300, index=i) for i, image in enumerate(IMAGES)]
    assert found.certificates == alone and found.labels == LABELS
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["index", "label", "prediction", "radius", "correct"]
    for i, (row, one, label) in enumerate(zip(rows, alone, LABELS, strict=True)):
        told = {"index": i, "label": label, "correct": int(one.prediction == label), **asdict(one)}
        assert row == {name: str(value) for name, value in told.items()}
    assert _left(out) == ["rows.csv"]


def test_a_row_at_one_radius_is_a_settlement(model, out):
    found = srs.certify_many(model, PAIRS, out=out, r=0.1, **ASK)
    first = srs.certify_at(model, IMAGES[:16], 0.1, sigma=0.5, n=300)
    last = srs.certify_at(model, IMAGES[32:], 0.1, sigma=0.5, n=300, indices=range(32, 40))
    assert found.certificates[:16] == first and found.certificates[32:] == last
    rows = pd.read_csv(out)
    assert rows["outcome"].tolist() == [one.outcome for one in found.certificates]
    assert rows["radius"].tolist() == [0.1 if outcome == "certified" else 0 for outcome in rows["outcome"]]
    assert {"r", "n_a", "drawn", "top", "evaluations"} <= set(rows.columns)
    assert found.accuracy(0.1)[0] == np.mean(rows["correct"])
    with pytest.raises(ValueError, match=r"r = 0.2 was not tested: ask for 0.1"):
        found.accuracy(0.2)
    again = srs.certify_many(model, PAIRS, out=out.with_name("again.csv"), r=np.float32(0.125), **ASK)
    assert again.certificates[0].r == 0.125


@pytest.mark.parametrize("labelled", [True, False])
def test_data_come_in_many_forms(model, tmp_path, labelled):
    tensors = (IMAGES, torch.tensor(LABELS)) if labelled else (IMAGES,)
    forms = {
        "loader": DataLoader(TensorDataset(*tensors), batch_size=7),
        "data set": TensorDataset(*tensors),
        "sequence": PAIRS if labelled else list(IMAGES),
        "batches": iter(DataLoader(TensorDataset(*tensors), batch_size=40)),
    } | ({} if labelled else {"tensor": IMAGES})
    told = set()
    for name, data in forms.items():
        found = srs.certify_many(model, data, out=tmp_path / name, **ASK | {"n": 20})
        assert found.labels == (LABELS if labelled else [None] * 40)
        told.add((tmp_path / name).read_text())
    (rows,) = told
    assert ("0,0," in rows) if labelled else all(re.match(r"\d+,,-?\d+,[\d.e-]+,,", row) for row in rows.splitlines()[1:])


@pytest.mark.parametrize("arrays", [False, True])
def test_names_and_classes_are_columns(model, out, arrays):
    names = [f"a, \u00e9 \udcff {i}.png" for i in range(40)]  # as Linux has them
    classes = list("abcdefghij")
    if arrays:
        names, classes = pd.Series(names, index=range(9, 49)), np.array(classes)
    found = srs.certify_many(model, PAIRS, out=out, names=names, classes=classes, **ASK)
    rows = pd.read_csv(out, encoding_errors="surrogateescape", keep_default_na=False)
    assert rows["file"].tolist() == list(names)
    assert rows["named"].tolist() == ["" if one.prediction < 0 else "abcdefghij"[one.prediction] for one in found.certificates]


def test_names_without_images_are_told_at_the_end_and_cost_no_row(model, out):
    with pytest.raises(ValueError, match="names has 41 files, but data had 40 images"):
        srs.certify_many(model, iter([(IMAGES, LABELS)]), out=out, names=[str(i) for i in range(41)], **ASK)
    assert len(out.read_text().splitlines()) == 41


@pytest.mark.parametrize("r", [None, 0.1])
def test_cohens_format_is_read_by_their_analysis(model, out, r):
    found = srs.certify_many(model, PAIRS, out=out, r=r, format="cohen", **ASK)
    assert out.read_text().startswith("idx\tlabel\tpredict\tradius\tcorrect\ttime\n")
    assert re.search(r"\t\d+\.\d{6}\t[01]\t\d:\d\d:\d\d(\.\d+)?\n", out.read_text())
    rows = pd.read_csv(out, delimiter="\t")
    for radius in (0, 0.05, 0.1) if r is None else (r,):
        at = (rows["correct"] & (rows["radius"] >= radius)).mean()  # ApproximateAccuracy.at_radius of code/analyze.py
        assert at == found.accuracy(radius)[0]
    told = out.read_text().splitlines()[1:]
    for row, one in zip(told, found.certificates):
        exact = one.radius if r is None else r if one.outcome == "certified" else 0
        assert Fraction(row.split("\t")[3]) <= Fraction(exact) + Fraction(1, 10**15)


def test_accuracy_is_that_of_correct_certificates():
    def certificate(prediction, radius):
        return srs.Certificate(prediction, radius, 0.9, 90, 0, 10, 100, 0.001, 0.5, evaluations=110)

    found = Certified([certificate(1, 0.5), certificate(1, 0.2), certificate(-1, 0.0), certificate(2, 0.9)], [1, 1, 1, None])
    assert found.accuracy(0) == (2 / 3, *bounds.clopper_pearson_interval(2, 3, 0.05))
    assert found.accuracy(0.5)[0] == 1 / 3 and found.accuracy(0.51)[0] == 0
    told = str(found)
    assert told.startswith("4 images, 1 abstentions, 110 evaluations of f an image\n") and "3 labelled images" in told
    assert "within 0: 66.7% (9.4% to 99.2%)" in told and "within 0.5: 33.3%" in told and "within 0.75" not in told
    with pytest.raises(ValueError, match="accuracy needs labels"):
        Certified([certificate(1, 0.5)], [None]).accuracy(0)
    assert str(Certified([certificate(1, 0.5)], [None])).count("\n") == 0


@pytest.mark.parametrize("r", [None, 0.1])
@pytest.mark.parametrize("torn", ["nothing", "rows", "journal", "row missing"])
def test_what_was_stopped_ends_with_the_same_bytes(model, out, tmp_path, r, torn):
    whole = tmp_path / "whole.csv"
    first = srs.certify_many(model, PAIRS, out=whole, r=r, **ASK)
    _interrupt(model, out, r=r)
    journal = Path(f"{out}.journal")
    done = 25 if r is None else 16
    assert out.read_bytes() == b"".join(whole.read_bytes().splitlines(True)[: done + 1])
    if torn == "rows":
        out.write_bytes(out.read_bytes() + b"25,5,3,0.0")
    if torn == "journal":
        journal.write_bytes(journal.read_bytes() + b'{"images": [{"ind')
    if torn == "row missing":
        out.write_bytes(out.read_bytes()[:-30])
    again = srs.certify_many(model, PAIRS, out=out, r=r, **ASK)
    assert out.read_bytes() == whole.read_bytes() and again == first
    assert _left(out) == ["rows.csv", "whole.csv"]


def test_what_is_known_is_not_computed_again(model, out, monkeypatch):
    _interrupt(model, out)
    numbers = []
    monkeypatch.setattr(
        "srs.many.certify", lambda *given, index, **ask: numbers.append(index) or real(*given, index=index, **ask)
    )
    real = srs.certify
    srs.certify_many(model, PAIRS, out=out, **ASK)
    assert numbers == list(range(25, 40))


def test_a_finished_file_is_not_overwritten(model, out):
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"^out = '.*rows.csv' exists: name another file, or remove it"):
        srs.certify_many(model, PAIRS, out=out, **ASK)
    assert out.read_text() == "mine" and _left(out) == ["rows.csv"]


@pytest.mark.parametrize(
    "other, told",
    [
        ({"sigma": 0.25}, "sigma = 0.5 there, 0.25 now"),
        ({"n": 400}, "n = 300 there, 400 now"),
        ({"alpha": 0.01}, "alpha = 0.001 there, 0.01 now"),
        ({"seed": 1}, "seed = 0 there, 1 now"),
        ({"r": 0.1}, "r = None there, 0.1 now"),
        ({"format": "cohen"}, "format = 'csv' there, 'cohen' now"),
        ({"classes": list("abcdefghij")}, "classes = None there, "),
        ({"sampler": srs.StandardSampler()}, "sampler = {'kind': 'direct'} there, "),
        ({"reference": srs.StandardSampler()}, "reference = None there, "),
    ],
)
def test_other_settings_are_refused(model, out, other, told):
    _interrupt(model, out)
    before = out.read_bytes()
    message = rf"^out = '.*rows.csv' was begun with other settings: {re.escape(told)}.*Name another file, or remove both"
    with pytest.raises(ValueError, match=message):
        srs.certify_many(model, PAIRS, out=out, **ASK | other)
    assert out.read_bytes() == before and _left(out) == ["rows.csv", "rows.csv.journal"]


def test_another_model_or_other_code_is_refused(model, out, monkeypatch):
    _interrupt(model, out)
    with monkeypatch.context() as patch:
        patch.setattr("srs.many.fingerprint", lambda files, parameters: "0123")
        with pytest.raises(ValueError, match="other settings: code = '[0-9a-f]{16}' there, '0123' now"):
            srs.certify_many(model, PAIRS, out=out, **ASK)
    with torch.no_grad():
        model[1].bias[3] += 1e-6
    with pytest.raises(ValueError, match="other settings: model = '[0-9a-f]{16}' there, "):
        srs.certify_many(model, PAIRS, out=out, **ASK)


def test_what_no_state_holds_is_of_the_model_too():
    def built(**fields):
        torch.manual_seed(0)
        return models.build("resnet-110", depth=8, image_size=8, num_classes=3, **fields)

    known = many._weights(built())
    assert known == many._weights(built()) != many._weights(built(mean=(0.1, 0.5, 0.5)))
    turned = built()
    turned.register_buffer("sign", torch.ones(()), persistent=False)
    before = many._weights(turned)
    turned.sign.neg_()
    assert many._weights(turned) != before


def test_other_images_are_refused(model, out):
    names = [str(i) for i in range(40)]
    _interrupt(model, out, r=0.1, names=names)
    ask = ASK | {"r": 0.1, "out": out, "names": names}
    changed = [(image + (i == 7) * 1e-3, label) for i, (image, label) in enumerate(PAIRS)]
    loader = DataLoader(PAIRS, 4, shuffle=True)
    for data, other, told in [
        (changed, {}, r"image 7 is not the one of .*rows\.csv\.journal: crc32 = \d+ there, \d+ now"),
        (loader, {}, r"image \d+ is not .* Is the loader shuffled, or did the folder change\?"),
        ([(image, 0) for image in IMAGES], {}, "image 1 is not .*: label = 1 there, 0 now"),
        (PAIRS, {"names": ["x", *names[1:]]}, "image 0 is not .*: file = '0' there, 'x' now"),
        (PAIRS[:12], {"names": names[:12]}, "image 12 is not .*: index = 12 there, None now"),
    ]:
        with pytest.raises(ValueError, match=told):
            srs.certify_many(model, data, **ask | other)
    assert len(out.read_text().splitlines()) == 17
    srs.certify_many(model, PAIRS, **ask)


def test_a_block_that_was_the_last_one_must_stay_it(model, out, monkeypatch):
    """Images that come later would share its batches: the file would be another than that of one run."""

    def stop(sheet, entries):
        if len(entries) < 16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("srs.many._Sheet.append", stop)
        srs.certify_many(model, PAIRS[:20], out=out, r=0.1, **ASK)
    with pytest.raises(ValueError, match="image 20 is not .*: index = None there, 20 now"):
        srs.certify_many(model, PAIRS, out=out, r=0.1, **ASK)
    assert len(srs.certify_many(model, PAIRS[:20], out=out, r=0.1, **ASK).labels) == 20


class Stream(IterableDataset):
    """Of a length that is known, but without numbers."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(IMAGES[:3])


BAD = {
    "image 3 has the shape (1, 8, 9): expected (1, 8, 8)": (torch.rand(1, 8, 9), 0),
    "image 3 must be a tensor of floats, pixels in [0, 1]; got torch.Tensor of torch.uint8": (
        torch.zeros(1, 8, 8, dtype=torch.uint8),
        0,
    ),
    "image 3 must be a tensor of floats, pixels in [0, 1]; got str": "three.png",
    "image 3 has pixels as large as 1e+09: expected about [0, 1]": (torch.full((1, 8, 8), 1e9), 0),
    "image 3 has values that are not finite": (torch.full((1, 8, 8), torch.nan), 0),
    "image 3 has the label 1.5: expected a class": (IMAGES[0], 1.5),
    "image 3 has the label -1: expected a class": (IMAGES[0], -1),
    "image 3 has the label True: expected a class": (IMAGES[0], True),
    "image 3 has the label tensor([1, 2]): expected a class": (IMAGES[0], torch.tensor([1, 2])),
    "image 3 has the label 'cat': expected a class": (IMAGES[0], "cat"),
    "image 3 is a tuple of 3: expected an image or (image, label)": (IMAGES[0], 1, 2),
}


@pytest.mark.parametrize("told", BAD)
def test_a_bad_image_is_named_and_rows_before_it_stay(model, out, told):
    data = [*PAIRS[:3], BAD[told], *PAIRS[4:]]
    with pytest.raises(ValueError, match=re.escape(told)):
        srs.certify_many(model, data, out=out, **ASK)
    assert len(out.read_text().splitlines()) == 4
    srs.certify_many(model, PAIRS, out=out, **ASK)
    assert len(out.read_text().splitlines()) == 41


@pytest.mark.parametrize(
    "data, settings, told",
    [
        (IMAGES[0], {}, r"data has the shape \(1, 8, 8\): expected \(n, C, H, W\); a single image is data\[None\]"),
        ([], {}, "data has no images"),
        (iter([]), {}, "data has no images"),
        (3, {}, "data is a int: expected a tensor"),
        (Stream(), {}, "data is a Stream: expected a tensor"),
        ({0: IMAGES[0]}, {}, "data is a dict: expected a tensor"),
        ("folder", {}, "data is a str: expected a tensor"),
        (islice(PAIRS, 3), {}, "batch 0 has no images that can be used: expected images"),
        (iter([(IMAGES, LABELS[:3])]), {}, "batch 0 has 40 images, but not as many labels"),
        (IMAGES, {"format": "cohen"}, "format = 'cohen' needs labels, image 0 has none"),
        (IMAGES, {"format": "tsv"}, "format = 'tsv' is unknown: choose one of csv, cohen"),
        (IMAGES, {"names": ["a"]}, "names has 1 files, but data has 40 images"),
        (iter([IMAGES]), {"names": []}, "names has 0 files, none for image 0"),
        (PAIRS, {"classes": []}, "image 0 has the label 0: there are 0 classes"),
        (IMAGES, {"sigma": -1.0}, "sigma"),
        (IMAGES, {"r": 9}, "r = 9 is out of range"),
        (IMAGES, {"r": 0.1, "reference": srs.StandardSampler()}, "reference = .* has no meaning with r = 0.1"),
        (IMAGES, {"sampler": srs.SerializedSampler()}, "is no DEQ, as this sampler needs one"),
        (IMAGES, {"output_key": "logits"}, "output_key = 'logits': the model's output is a Tensor without it"),
    ],
)
def test_what_cannot_be_used_leaves_nothing_behind(model, out, data, settings, told):
    with pytest.raises(ValueError, match=told):
        srs.certify_many(model, data, out=out, **ASK | settings)
    assert _left(out) == []


def test_a_place_that_cannot_be_written_is_refused(model, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for out in ("nowhere/rows.csv", "folder", "file/rows.csv"):
        with pytest.raises(ValueError, match=f"^out = '.*{out}' cannot be written: name a file in a folder that exists"):
            srs.certify_many(model, PAIRS, out=tmp_path / out, **ASK)


def test_a_model_in_training_mode_is_refused_and_leaves_nothing(model, out):
    with pytest.raises(ValueError, match="eval"):
        srs.certify_many(model.train(), PAIRS, out=out, **ASK)
    assert _left(out) == []


@pytest.mark.parametrize("r", [None, 0.1])
def test_logits_under_a_key(model, out, r):
    other = out.with_name("other.csv")
    srs.certify_many(lambda x: {"logits": model(x)}, PAIRS[:3], out=out, output_key="logits", r=r, **ASK)
    srs.certify_many(lambda x: model(x), PAIRS[:3], out=other, r=r, **ASK)
    assert out.read_text() == other.read_text()


def test_any_callable_and_any_state_can_be_resumed(out):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("narrow", torch.ones(3, dtype=torch.bfloat16))
            self.register_buffer("one", torch.tensor(1.0))

        def get_extra_state(self):
            return {"version": 2}

        def forward(self, x):
            return x.flatten(1)[:, :3]

    for number, classifier in enumerate([Odd().eval(), lambda x: x.flatten(1)[:, :3]]):
        place = out.with_name(f"{number}.csv")
        _interrupt(classifier, place)
        settings = json.loads(Path(f"{place}.journal").read_text().splitlines()[0])
        assert ("<lambda>" in settings["model"]) == (number == 1) and settings["n0"] == 100
        srs.certify_many(classifier, PAIRS, out=place, **ASK)
    assert out.with_name("0.csv").read_bytes() == out.with_name("1.csv").read_bytes()


def test_progress_begins_where_the_run_does(model, out, capsys):
    _interrupt(model, out)
    srs.certify_many(model, PAIRS, out=out, **ASK | {"progress": True})
    assert "40/40" in capsys.readouterr().err
