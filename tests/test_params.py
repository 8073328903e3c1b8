from pathlib import Path

import pytest

from srs import params

TEXT = (Path(__file__).parent.parent / "params.yaml").read_text()


def _load(tmp_path, *edits):
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    return params.load(tmp_path / "params.yaml")


def test_the_file_itself_is_well_formed_and_the_default_is_embedded():
    study = params.load(Path(__file__).parent.parent / "params.yaml")
    assert study.active == study.profiles["embedded"]
    assert {"smoke", "embedded"} <= set(study.profiles)
    assert all(name == profile.name for name, profile in study.profiles.items())


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("audit: 400", "auditt: 400", "settings.auditt: no such parameter; did you mean audit"),
        ("audit: 400", "audit: 40000", "audit = 40000 must be at most n = 2000"),
        ("n: 2000", "n: 5", "n = 5 is too small for alpha = 0.001.*at least 10"),
        ("alpha: 0.001, audit: 400", "alpha: 1.5, audit: 400", r"settings.alpha: .*less than 1 \(got 1.5\)"),
        ("images: 50", "images: 5000", "images = 5000 is out of range.*500 test images"),
        ("steps: 30", "steps: 0", r"MDEQ-30A.solver.steps: .*greater than or equal to 1 \(got 0\)"),
        ("kind: serialized", "kind: serial", "'serial' .*'standard', 'serialized'"),
        ("preset: mdeq-small", "preset: mdeq-smal", "'mdeq-smal' is unknown: choose one of mdeq-small"),
        ("learning_rate: 0.001", "learning_rate: fast", r"training.learning_rate: .*number.*\(got 'fast'\)"),
        ("reference: MDEQ-30A", "reference: SRS-MDEQ-1A", "'SRS-MDEQ-1A' must name a standard sampler: MDEQ-1A"),
        ("model: {data: digits", "model: {data: letters", "model.data = 'letters' is unknown: choose one of digits"),
        ("table2: small", "table2: large", "report.table2 = 'large' is unknown: choose one of small"),
        ("crop_padding: 1", "crop_paddin: 1", "crop_paddin: no such parameter; did you mean crop_padding"),
        ("preset: mdeq-small", "preset: mdeq-small, overrides: {dropuot: 0.1}", "dropuot"),
        ("radii: [0, 0.25", "radii: [0.25", "must start at 0 and ascend"),
        ("sigma: 0.5, n0", "sigma: .inf, n0", "settings.sigma: .*finite"),
        ("chains: 400}", "chains: 400, restart: 2, start: clean}", "restart = 2 needs start = 'previous'"),
        ("active: *embedded", "active: {name: x}", "active.datasets: Field required"),
        ("active: *embedded", "active: *embeded", "not valid YAML"),
    ],
)
def test_every_fault_is_named_with_its_place_and_what_would_do(tmp_path, old, new, named):
    with pytest.raises(params.ParameterError, match=named):
        _load(tmp_path, (old, new))


def test_a_fault_of_the_active_profile_is_told_once(tmp_path):
    with pytest.raises(params.ParameterError) as error:
        _load(tmp_path, ("n: 2000", "n: 5"))
    assert len(str(error.value).splitlines()) == 1


def test_sections():
    values = {"a": {"b": [1]}}
    assert params.section(values, "a.b") == [1]
    with pytest.raises(params.ParameterError, match="no 'a.c.d': 'c' is missing"):
        params.section(values, "a.c.d")
