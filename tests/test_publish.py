import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml

from study.common.layout import Layout
from study.common.snapshot import SNAPSHOTS
from study.reports import cells, index, items, overview, publish, recompute
from study.reports.profile import Profile


def test_publish_copies_reports_and_their_figures(tmp_path):
    source, target = tmp_path / "runs", tmp_path / "reports"
    with pytest.raises(FileNotFoundError, match="run `make repro` first"):
        publish.publish([source / "05.ipynb"], target)
    source.mkdir()
    png = {"image/png": "iVBORw0KGgo="}
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", png)])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source / "05.ipynb")
    names = {path.name for path in publish.publish([source / "05.ipynb"], target)}
    assert names == {"05.ipynb", "05-1.png"} == {path.name for path in target.iterdir()}
    large = nbformat.v4.new_markdown_cell("x" * publish.LARGEST)
    nbformat.write(nbformat.v4.new_notebook(cells=[large]), source / "05.ipynb")
    with pytest.raises(ValueError, match="at most 2,000,000"):
        publish.publish([source / "05.ipynb"], target)


def test_provenance_tells_of_uncommitted_changes_except_the_choice_of_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = SimpleNamespace(layout=Layout("embedded"), machines={"small": ["an abacus, torch 9.9"]})
    knobs, code = tmp_path / "params.yaml", tmp_path / "srs" / "models.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    (tmp_path / "profiles").mkdir()
    for path in (knobs, tmp_path / "profiles" / "embedded.yaml"):
        path.write_text("name: embedded\nalpha: 0.001\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm begin"):
        subprocess.run(["git", *command.split()], check=True)
    told = publish._provenance(profile, publish._origin(profile))
    assert "an abacus" in told and "uncommitted" not in told
    knobs.write_text(knobs.read_text() + "published: all\n")  # other networks than were made so are never taken
    assert "uncommitted" not in publish._provenance(profile, publish._origin(profile))
    knobs.write_text(knobs.read_text().replace("0.001", "0.01"))
    assert "with uncommitted changes" in publish._provenance(profile, publish._origin(profile))
    subprocess.run(["git", "checkout", "-q", "params.yaml"], check=True)
    code.write_text("x = 2\n")
    assert "with uncommitted changes" in publish._provenance(profile, publish._origin(profile))


def test_the_published_snapshot_shows_every_item():
    """What stands under reports/ has every table and figure of the paper, with its caption."""
    root = Path(__file__).parent.parent
    paper = yaml.safe_load((root / items.ITEMS).read_text())["items"]
    published = root / "reports" / "full"
    assert index.faults(published, paper) == []
    page = (published / "README.md").read_text()
    assert all(re.search(f"{items.label(item)}[,\n]", page) for item in paper)
    assert all((published / path).is_file() for path in re.findall(r"\]\(([^)]+)\)", page))
    sizes = {path: path.stat().st_size for path in (root / "reports").rglob("*") if path.is_file()}
    assert all(size <= (recompute if path.parent.name == "votes" else publish).LARGEST for path, size in sizes.items())


def test_the_published_votes_of_cifar10_give_its_published_certificates(tmp_path, monkeypatch):
    """Without an image of CIFAR-10. Of one network here; `python -m study.reports.recompute cifar10 FOLDER` takes all, and
    makes the reports, too."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    published = cells.read_published(SNAPSHOTS / "cifar10")
    published = published[published["run"] == "small-012"]
    recompute.unpack("cifar10", tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    profile = Profile("cifar10")
    profile.plans.plans = {"small-012": profile.plans.plans["small-012"]}
    recompute.certify(profile)
    assert len(published) == 100 * (5 + 3 * 2)  # five rows; two serialized ones by three estimators each, besides
    assert recompute.differing(published, cells.read(profile.layout.runs)).empty
    votes = next(Path("runs/cifar10/votes/small-012").glob("*.npz"))
    with np.load(votes) as cast:
        np.savez(votes, **{name: (cast[name] + 1) % 10 if name == "classes" else cast[name] for name in cast})
    recompute.certify(profile)
    assert len(recompute.differing(published, cells.read(profile.layout.runs))) >= 4  # the images of that file


def test_the_landing_page_reads_the_published_cifar10(monkeypatch):
    """Of a run on stand-in data; what it draws is what the published report shows."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    report = SimpleNamespace(small=SimpleNamespace(main="small-050"))
    published = yaml.safe_load(Path("data/published.yaml").read_text())
    results = SimpleNamespace(report=report, published=published, dataset=lambda key: SimpleNamespace(name="digits"))
    found, on = overview.curves(results)
    assert on.startswith("CIFAR-10 as in reports/cifar10, which says what its images are; trained for 17 epochs (the paper's: ")
    assert on.endswith(" 120); 500 images, N = 2,000, K = 400")
    known = found.dropna(subset="ours").set_index(["row", "r"])
    assert len(known) >= 9 and (known["lower"] <= known["ours"]).all() and (known["ours"] <= known["upper"]).all()
    outputs = index.outputs(Path("reports/cifar10/24_cifar10.ipynb"))
    page = next(data["text/html"] for data in outputs if 'id="table_2"' in data.get("text/html", ""))
    head, *lines = items.as_table(page)
    (row,) = (line for line in lines if line[0] == "SRS-MDEQ-3A")
    assert row[head.index("r = 0")].startswith(f"{known.loc[('SRS-MDEQ-3A', 0), 'ours']:.0f} [")
