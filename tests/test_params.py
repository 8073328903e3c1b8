from pathlib import Path

import pytest

from srs import checkpoints, models, params, sections

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
    assert {"smoke", "embedded", "paper", "cifar10"} == set(study.profiles)
    assert all(name == profile.name for name, profile in study.profiles.items())


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("alpha: 0.001, audit: 400", "alpha: 0.001, auditt: 400", "certificates.auditt: no such parameter; did you mean audit"),
        (
            "alpha: 0.001, audit: 400",
            "alpha: 0.001, audit: 40000",
            r"groups.main: audit = 40000 is out of range: at most n = 2000",
        ),
        ("images: 50, n: 2000", "images: 50, n: 50", "groups.main: audit = 400 is out of range: at most n = 50"),
        ("alpha: 0.001, audit: 400", "alpha: 0.001, audit: 3", "audit = 3 of n = 2000 draws certify nothing.*at least 13"),
        ("estimator: finite_population", "estimator: finite", "certificates.estimator: .*'finite_population'.*'released_code'"),
        ("split: 0.5", "split: 0.5, census: 0.1", "census = 0.1 needs the reference's votes on all draws.*audit = 400 must go"),
        ("audit_draw: random", "audit_draw: random, census: 0.1, estimator: theorem_3_1", "estimator"),
        ("arithmetic: &arithmetic {experiment: small-050", "arithmetic: &arithmetic {experiment: any", "'any' is unknown"),
        ("runs: 1000", "runs: 0", r"coverage.runs: .*greater than or equal to 1 \(got 0\)"),
        (
            "{images: 50, n: 2000, samplers: *direct}",
            "{images: 50, n: 5, samplers: *direct}",
            "n = 5 is too small for alpha = 0.001",
        ),
        ("alpha: 0.001, audit: 400", "alpha: 1.5, audit: 400", r"certificates.alpha: 1.5 is out of range: .*< 1 \(got 1.5\)"),
        ("images: 50\n", "images: 5000\n", "images = 5000 is out of range.*500 test images"),
        (
            "{images: 50, n: 2000, samplers: *main}",
            "{images: 51, n: 2000, samplers: *main}",
            "images = 51 is out of range: 1 to images = 50",
        ),
        ("steps: 30}}", "steps: 0}}", r"MDEQ-30A.solver.steps: .*greater than or equal to 1 \(got 0\)"),
        ("kind: serialized", "kind: serial", "'serial' .*'standard', 'serialized'"),
        ("preset: mdeq-small", "preset: mdeq-smal", "'mdeq-smal' is unknown: choose one of mdeq-small"),
        ("learning_rate: 0.001", "learning_rate: fast", r"training.learning_rate: .*number.*\(got 'fast'\)"),
        ("reference: *mdeq-14b", "reference: *srs-1b", "reference"),
        (
            "model: &small {data: digits",
            "model: &small {data: letters",
            "model.data = 'letters' is unknown: choose one of digits",
        ),
        ("main: small-050\n", "main: small-051\n", "report.small = 'small-051' is unknown: choose one of small-050"),
        ("resnet: resnet-050", "resnet: vgg", "report.resnet = 'vgg' is unknown"),
        (
            "{experiment: small-050, method: SRS-MDEQ-3A",
            "{experiment: small-050, method: SRS-MDEQ-9A",
            "'SRS-MDEQ-9A' is unknown: choose one of MDEQ-1A",
        ),
        ("attack: small", "attack: tiny", "attack = 'tiny' is unknown: choose one of small"),
        ("crop_padding: 1", "crop_paddin: 1", "crop_paddin: no such parameter; did you mean crop_padding"),
        ("overrides: {expansion: 2, dropout: 0}", "overrides: {expansoin: 2, dropout: 0}", "expansoin"),
        ("&cifar-radii [0, 0.25", "&cifar-radii [0.25", "must start at 0 and ascend"),
        ("sigma: 0.5\n", "sigma: .inf\n", "sigma: .*finite"),
        (
            "tuned: small-025-tuned",
            "tuned: small-025",
            "report.past.tuned = 'small-025' is unknown: choose one of small-050-no-jacobian, ",
        ),
        ("experiment: small-025\n", "experiment: small-26\n", "variants.small-025-.*experiment = 'small-26' is unknown"),
        ("experiment: small-025\n", "experiment: large-025\n", "model must be the model of its experiment, 'large-025'"),
        ("sigma: 0.12, start: learned,", "sigma: 0.12,", "'AS-MDEQ-1N tuned' starts at 'learned': training.start must be"),
        (
            "&pairs {sigma: 0.5, images: 100",
            "&pairs {sigma: 0.5, images: 50",
            "votes.images = 50 must be 100, as in experiments",
        ),
        ("{pair: {images: 30", "{pair: {images: 20", "groups.pair.images = 20 must be 30, as .*groups.steps.images"),
        ("starts: &starts {points: 4000", "starts: &starts {points: 1", "starts.points: .*greater than or equal to 2"),
        ("speed: &speed {n: 10000", "speed: &speed {n: 20", "too small|certify nothing|out of range"),
        ("    MDEQ-30A stopped: *stopped\n", "", "groups.past: the row = 'MDEQ-30A stopped' is unknown"),
        ("stop: relative, tolerance: 0.001}}", "stop: fixed}}", "groups.past: MDEQ-30A stopped.solver.stop = 'fixed' must"),
        ("start: clean}", "start: clean, restart: 2}", "restart = 2 needs start = 'previous'"),
        ("active: *embedded", "active: {name: x}", "active.datasets: Field required"),
        ("active: *embedded", "active: *embeded", "not valid YAML"),
    ],
)
def test_every_fault_is_named_with_its_place_and_what_would_do(tmp_path, old, new, named):
    with pytest.raises(sections.ParameterError, match=named):
        _load(tmp_path, (old, new))


def test_the_profile_paper_trains_as_released():
    profile = params.load(Path(__file__).parent.parent / "params.yaml").profiles["paper"]
    for key, trained in profile.trained.items():
        measured = trained.model.data == "imagenet"
        assert (trained.model.overrides.get("std") == [0.2023, 0.1994, 0.201]) != measured, key
        if not trained.model.preset.startswith("resnet"):
            assert trained.training.unrolled_jacobian_weight == (0.03 if measured else 0), key
            assert trained.training.jacobian_vectors == 2, key


def test_the_profile_cifar10_says_how_the_shipped_model_was_trained():
    experiment = params.load(Path(__file__).parent.parent / "params.yaml").profiles["cifar10"].experiments["small-050"]
    card, training = checkpoints.read_card("mdeq-small-cifar10-0.50"), experiment.training.model_dump(mode="json")
    for solver in (part for settings in (training, card.training) for part in settings.values() if isinstance(part, dict)):
        solver.pop("ridge_scale")  # of Anderson's method, which trained nothing: absolute then
    assert {name: training[name] for name in card.training} == card.training
    assert training["unrolled_jacobian_weight"] == training["jacobian_weight"] and training["jacobian_vectors"] == 1
    built = models.build(experiment.model.preset, **experiment.model.overrides)
    assert sum(p.numel() for p in built.parameters()) == card.parameters


def test_a_fault_of_the_active_profile_is_told_once(tmp_path):
    with pytest.raises(sections.ParameterError) as error:
        _load(tmp_path, ("{images: 50, n: 2000, samplers: *direct}", "{images: 50, n: 5, samplers: *direct}"))
    assert len(str(error.value).splitlines()) == 1


def test_sections():
    values = {"a": {"b": [1]}}
    assert sections.section(values, "a.b") == [1]
    with pytest.raises(sections.ParameterError, match="no 'a.c.d': 'c' is missing"):
        sections.section(values, "a.c.d")


def test_an_edit_while_params_are_checked_fails_the_stage(tmp_path, monkeypatch):
    """DVC would take the edited file for the one that was checked."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TEXT)
    load = params.load

    def slow():
        study = load()
        Path("params.yaml").write_text(TEXT.replace("alpha: 0.001", "alpha: 0.01"))
        return study

    monkeypatch.setattr(params, "load", slow)
    with pytest.raises(SystemExit, match="params.yaml was edited while it was checked"):
        params.main()
    assert not Path("runs").exists()
    monkeypatch.setattr(params, "load", load)
    params.main()
    assert Path("runs/embedded/checked").is_file()
