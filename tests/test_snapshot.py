"""Published networks and starts in place of training: what is asked for, refused, and taken as it is."""

import json
from pathlib import Path

import pytest
import yaml

from srs.common.resume import sha256
from study import params
from study.common.engine import Machine, read_record
from study.common.layout import Layout
from study.common.runs import with_repeats
from study.common.snapshot import SNAPSHOTS
from study.starts import start_jobs
from study.training import training_jobs

SMOKE = yaml.safe_load((Path(__file__).parent.parent / "profiles" / "smoke.yaml").read_text())
THREE_STEPS = {"kind": "standard", "solver": {"method": "naive", "steps": 3}, "start": "mean"}
RECORD = {"train": 75.4, "machine": {"hardware": "an abacus"}}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A snapshot of the smoke profile with two networks, one with starts, that were never trained."""
    monkeypatch.chdir(tmp_path)
    study, networks = _study(), {}
    for result in ("models/small-050", "starts/small-050", "models/small-025"):
        folder = SNAPSHOTS / "smoke" / result
        folder.mkdir(parents=True)
        files = ["starts.pt", "held_out.csv"] if result.startswith("starts") else ["model.pt", "history.csv"]
        for name in files:
            (folder / name).write_text(f"{result}/{name}")
        hashes = {name: sha256(folder / name) for name in files}
        networks[result] = {"made_by": study.made_by()[result], "sha256": hashes, "record": RECORD}
    (SNAPSHOTS / "smoke" / "networks.json").write_text(json.dumps(networks))
    return SNAPSHOTS / "smoke"


def _study(**changes):
    Path("params.yaml").write_text(yaml.safe_dump(SMOKE | changes))
    return params.load()


def test_what_is_asked_for_is_taken(published):
    assert _study().taken() == {}
    assert _study(published=["small-025"]).taken().keys() == {"models/small-025"}
    assert _study(published="all").taken().keys() == {"models/small-025", "models/small-050", "starts/small-050"}
    layout, study = Layout("smoke"), _study(published="all")
    params.main()
    layout.data.mkdir(parents=True)
    for data in ("digits", "mnist"):
        layout.dataset(data).touch()
    sections = study.plans.runs, *(SMOKE[name] for name in ("models", "training", "data")), layout, Machine()
    jobs = training_jobs(["small-050"], *sections)
    (task,) = jobs[0]
    task.perform()
    assert (task.out / "model.pt").read_text() == "models/small-050/model.pt"
    assert sorted(path.name for path in task.out.iterdir()) == ["history.csv", "model.pt"]
    assert read_record(task.record) == RECORD | {"origin": task.origin} and task.done
    (layout.runs / "published.json").write_text("{}")
    assert not training_jobs(["small-050"], *sections)[0][0].done
    (layout.runs / "published.json").write_text(json.dumps(study.taken()))
    for key in study.plans.with_starts():  # whose tasks look at the network
        (layout.runs / "models" / key).mkdir(parents=True, exist_ok=True)
        (layout.runs / "models" / key / "model.pt").touch()
    (fitted,) = (task for (task,) in start_jobs(study.plans, SMOKE["starts"], layout, Machine()) if "profile" in task.arguments)
    fitted.perform()
    assert (layout.runs / "starts/small-050/starts.pt").read_text() == "starts/small-050/starts.pt"


@pytest.mark.parametrize(
    "changes, damage, message",
    [
        ({"published": ["small-050"]}, "alter", r"small-050/model\.pt has the hash .*, networks\.json says"),
        ({"published": ["small-050"]}, "remove", r"small-050/model\.pt is missing: get it again"),
        ({"published": ["resnet-050"]}, "", "published = 'resnet-050' is unknown: choose one of small-050, small-025"),
        (
            {"published": "all", "training": {"tiny": {"epochs": 3}}},
            "",
            "was made by other settings, training.epochs is 3 here and 2",
        ),
        ({"published": "all", "starts": SMOKE["starts"] | {"copies": 7}}, "", "starts.copies is 7 here and 4 there"),
        (
            {"published": "all", "starts": SMOKE["starts"] | {"candidates": SMOKE["starts"]["candidates"][:-1]}},
            "",
            "starts/small-050 was made by other settings, starts.candidates is .* here and",
        ),
        (
            {"published": "all", "samplers": SMOKE["samplers"] | {"AS-MDEQ-1N mean": THREE_STEPS}},
            "",
            "starts/small-050 was made by other settings, candidates.AS-MDEQ-1N mean.solver.steps is 3 here and 1 there",
        ),
        ({"published": "all", "name": "other"}, "", "published = 'all': data/snapshots/other has no networks"),
    ],
)
def test_what_cannot_be_taken_stops_the_check(published, changes, damage, message):
    model = published / "models/small-050/model.pt"
    if damage == "alter":
        model.write_text("other weights")
    elif damage == "remove":
        model.unlink()
    _study(**changes)
    with pytest.raises(SystemExit, match=message):
        params.main()
    assert not Path("runs").exists()


@pytest.mark.parametrize("change", ["training", "starts"])
def test_a_network_whose_base_is_made_otherwise_is_not_taken(published, change):
    """Though its own settings are those of the snapshot."""
    folder = published / "tuned/small-050-tuned"
    folder.mkdir(parents=True)
    (folder / "model.pt").touch()
    networks = json.loads((published / "networks.json").read_text())
    entry = {"made_by": _study().made_by()["tuned/small-050-tuned"], "sha256": {"model.pt": sha256(folder / "model.pt")}}
    (published / "networks.json").write_text(json.dumps(networks | {"tuned/small-050-tuned": entry | {"record": RECORD}}))
    assert _study(published=["small-050-tuned"]).taken().keys() == {"tuned/small-050-tuned"}
    base = SMOKE["runs"]["small-050"] | {"training": {"unrolled_steps": 17}}
    changes = {
        "training": {"runs": SMOKE["runs"] | {"small-050": base}},
        "starts": {"starts": SMOKE["starts"] | {"points": 201}},
    }
    told = {"training": "base.training.unrolled_steps is 17 here and 16", "starts": "base.starts.points is 201 here and 200"}
    with pytest.raises(ValueError, match=f"small-050-tuned was made by other settings, {told[change]} there"):
        _study(published=["small-050-tuned"], **changes[change]).taken()


@pytest.mark.parametrize("value", ["some", True, {"small-050": True}, ["small-051"]])
def test_what_does_not_name_runs_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        params.ParameterError, match="published.*(none, all or a list of runs is wanted|'small-051' is unknown)"
    ):
        _study(published=value)


def test_a_file_that_was_exchanged_after_the_check_is_not_taken(published):
    _study(published="all")
    params.main()
    (published / "models/small-050/model.pt").write_text("other weights")
    layout = Layout("smoke")
    layout.data.mkdir(parents=True)
    layout.dataset("digits").touch()
    sections = with_repeats(SMOKE["runs"]), *(SMOKE[name] for name in ("models", "training", "data")), layout, Machine()
    ((task,),) = training_jobs(["small-050"], *sections)
    with pytest.raises(ValueError, match="has the hash"):
        task.perform()
    assert not task.out.exists()
