import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from srs import checkpoints, models
from srs.training.train import Training
from study import params, switch
from study.common import params_file

ROOT = Path(__file__).parent.parent
PROFILES = {path.stem: path for path in (ROOT / "profiles").glob("*.yaml")}
TEXT = PROFILES["embedded"].read_text()


def _load(tmp_path, *edits, text=TEXT):
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    return params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ["smoke", "embedded", "full", "paper", "cifar10"])
def test_profiles_are_well_formed_and_short(name):
    assert params.load(PROFILES[name]).name == name
    text = PROFILES[name].read_text()
    assert len(text.splitlines()) <= 250
    assert not [event for event in yaml.parse(text) if getattr(event, "anchor", None)]  # DVC's rewriting loses them


def test_the_committed_profile_is_the_default():
    """That of this folder may have been edited."""
    names = "params.yaml", "profiles/embedded.yaml"
    shown = [subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True) for name in names]
    if any(done.returncode for done in shown):
        pytest.skip("not a git repository")
    assert shown[0].stdout == shown[1].stdout


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("alpha: 0.001, audit: 400", "alpha: 0.001, auditt: 400", "certificates.auditt: no such parameter; did you mean audit"),
        ("alpha: 0.001, audit: 400", "alpha: 0.001, audit: 40000", "draws.main: audit = 40000 is out of range: at most n = 1000"),
        ("main: {images: 25, n: 1000", "main: {images: 25, n: 50", "draws.main: audit = 400 is out of range: at most n = 50"),
        ("alpha: 0.001, audit: 400", "alpha: 0.001, audit: 3", "audit = 3 of n = 1000 draws certify nothing.*at least 13"),
        ("estimator: finite_population,", "estimator: finite,", "certificates.estimator: .*'finite_population'.*'released_code'"),
        ("split: 0.5", "split: 0.5, census: 0.1", "census = 0.1 needs the reference's votes on all draws.*audit = 400 must go"),
        ("audit_draw: random,", "audit_draw: random, census: 0.1,", "census"),
        ("arithmetic: {run: small-050", "arithmetic: {run: any", "arithmetic.run = 'any' is unknown: choose one of small-050"),
        ("{runs: 500", "{runs: 0", r"coverage.runs: .*greater than or equal to 1 \(got 0\)"),
        ("direct: {images: 25, n: 1000}", "direct: {images: 25, n: 5}", "draws.direct: n = 5 is too small for alpha = 0.001"),
        ("alpha: 0.001, audit: 400", "alpha: 1.5, audit: 400", r"certificates.alpha: 1.5 is out of range: .*< 1 \(got 1.5\)"),
        ("mnist: 25}", "mnist: 5000}", "votes.images.mnist = 5000 is out of range.*500 test images"),
        ("main: {images: 25, n", "main: {images: 26, n", "draws.main.images = 26 is out of range: 1 to 25"),
        ("steps: 30, stop: relative", "steps: 0, stop: relative", r"solver.steps: .*greater than or equal to 1 \(got 0\)"),
        ("kind: serialized", "kind: serial", "'serial' .*'standard', 'serialized'"),
        ("preset: mdeq-small, overrides: {expansion: 2", "preset: mdeq-smal, overrides: {expansion: 2", "'mdeq-smal' is unknown"),
        ("learning_rate: 0.002", "learning_rate: fast", r"training.large.learning_rate: .*number.*\(got 'fast'\)"),
        ("{jacobian_weight: 0}}", "{jacobian_weigth: 0}}", "runs.small-050-no-jacobian.training.jacobian_weigth"),
        ("imagenet: MDEQ-14B, mondeq", "imagenet: MDEQ-15B, mondeq", "draws.imagenet has serialized rows: list the reference among its rows"),
        ("small: {data: digits", "small: {data: letters", "models.small.data = 'letters' is unknown: choose one of digits, mnist"),
        ("{main: small-050,", "{main: small-051,", "report.small = 'small-051' is unknown: choose one of small-050"),
        ("resnet: resnet-050", "resnet: vgg", "report.resnet = 'vgg' is unknown"),
        ("plain: resnet20-050", "plain: vgg", "report.plain = 'vgg' is unknown"),
        ("{small-050: SRS-MDEQ-3A,", "{small-050: SRS-MDEQ-9A,", "'SRS-MDEQ-9A' is unknown: choose one of MDEQ-1A"),
        ("{small-050: SRS-MDEQ-3A, large", "{small-012: SRS-MDEQ-3A, large", "robustness.runs: report.small.main = 'small-050'"),
        ("crop_padding: 1", "crop_paddin: 1", "crop_paddin: no such parameter; did you mean crop_padding"),
        ("{expansion: 2, dropout: 0}", "{expansoin: 2, dropout: 0}", "models.large.overrides.expansoin"),
        ("radii: {digits: [0, 0.25", "radii: {digits: [0.25", "radii.digits = .* must start at 0 and ascend"),
        ("small-050: {model: small, sigma: 0.5, rep", "small-050: {model: small, sigma: .inf, rep", "sigma: .*finite"),
        ("tuned: small-025-tuned", "tuned: small-25", "report.past = 'small-25' is unknown: choose one of small-050, "),
        ("mondeq: mondeq-025", "mondeq: small-025", "report.mondeq = 'small-025' is no monotone DEQ: the preset of models.small"),
        ("lipschitz: mondeq-lipschitz", "lipschitz: any", "report.lipschitz = 'any' is unknown: choose one of small-050"),
        ("    mondeq-025: [mondeq]", "    mondeq-025: [sequential]", "votes.groups.mondeq-025 = .* needs a group with the rows 'mondeq'"),
        ("base: small-025,", "base: small-26,", "runs.small-025-tuned.base = 'small-26' is unknown"),
        ("base: small-025,", "base: large-025,", "runs.small-025-tuned.model = 'small' must be that of its base run, 'large'"),
        ("small-012: {model", "small-012: {pretrained: large-050, model", "runs.small-012.model = 'small' must be that of its pretrained run"),
        ("small-012: {model", "small-012: {pretrained: small-999, model", "runs.small-012.pretrained = 'small-999' is unknown"),
        ("smoothadv: {model", "smoothadv: {pretrained: small-050, base: small-025, model", "base = 'small-025' and pretrained = 'small-050' excl"),
        ("base: small-025,", "base: small-050-tuned,", "base = 'small-050-tuned' must be trained from scratch"),
        ("base: small-025, training: {start: learned, ", "base: small-025, training: {", "start = 'initial' must be 'mean' or"),
        ("sigma: 0.25, base: small-025,", "sigma: 0.25,", "start = 'learned' needs a base, whose starts it has"),
        ("batch_size: 48, consistency: {weight: 10}", "batch_size: 48",
         "report.consistency = 'small-050-consistency' is trained otherwise: give it runs.small-050-consistency.training.consis"),
        ("  pair: {images: 15", "  pair: {images: 20", "draws.pair.images = 20 must be 15, as in draws.steps"),
        ("starts: {points: 4000", "starts: {points: 1", "starts.points: .*greater than or equal to 2"),
        ("speed: {n: 4000", "speed: {n: 20", "too small|certify nothing|out of range"),
        ("speed: {n: 4000", "speed: {plain: [21], n: 4000", "speed.plain: the depth of a ResNet is 6n \\+ 2, at least 8: not 21"),
        ("speed: {n: 4000", "speed: {rows: direct, n: 4000", "speed.rows: a list of small-012 with MDEQ-30A = 'direct' is unknown: choose"),
        ("small-012: [levels, past, ", "small-012: [levels, ", "votes.groups.small-012 = .* needs a group with the rows 'past', for report.past"),
        ("speed: {n: 4000", "speed: {radius: 9, n: 4000", "speed.radius = 9 is out of range: 0 to 0.339 for small-012, from speed.n = 4000"),
        ("past: # beyond the paper: amortized starts beside honest baselines\n    [MDEQ-30A, MDEQ-30A stopped,",
         "past:\n    [MDEQ-30A,", "rows.past: the row = 'MDEQ-30A stopped' is unknown"),
        ("stop: relative, tolerance: 0.001}}", "stop: fixed}}", "samplers.MDEQ-30A stopped.solver.stop = 'fixed' must be another"),
        ("start: clean}", "start: clean, restart: 2}", "restart = 2 has no meaning with start = 'clean'"),
        ("[main, levels,", "[mian, levels,", "votes.groups.small-050 = 'mian' is unknown: choose one of main"),
        ("references: {imagenet: MDEQ", "references: {imagnet: MDEQ", "votes.references = 'imagnet' is unknown: choose one of small"),
        ("references: {imagenet: MDEQ-14B", "references: {imagenet: SRS-MDEQ-1B", "votes.references.imagenet = 'SRS-MDEQ-1B' audits"),
        ("repeated: [repeats]", "repeated: [repeat]", "votes.repeated = 'repeat' is unknown: choose one of main"),
        ("  radii: [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]\n  samples", "  radii: [0]\n  samples", "robustness.radii: .*above 0"),
        ("  radii: [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]\n  samples", "  radii: [0.5, 0]\n  samples", r"robustness.radii: .*\[0.5, 0.0\] must ascend"),
        ("radii: {digits: [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]", "radii: {digits: [0]", r"radii.digits = \[0.0\] must .*two or more"),
        ("radii: {digits: [0, 0.25, 0.5,", "radii: {digits: [0, 1.5,", r"radii.digits = .* must start at 0 and ascend"),
        ("radii: {digits: [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]", "radii: {digits: [0, 1.5]", "radii.digits = .*the second is wanted at most 1.231, wh"),
        ("  consistency: {images: 15, n: 1000}", "  consistency: {images: 15, n: 100, audit: 90}", "draws.consistency.n = 100 is out of range: more than 100"),
        ("restart, samples_1000, samples_3000, samples_10000, repeats", "restart, samples_1000, repeats",
         "votes.groups.small-050 = .* needs groups with the rows 'samples' of two n or more"),
        ("pair: [MDEQ-30A, SRS-MDEQ-1A", "pair: [MDEQ-30A, SRS-MDEQ-1C", "the row 'SRS-MDEQ-1C' does not say what it is"),
        ("10 steps: SRS-MDEQ-3A", "10 steps: never", "samplers.10 steps = 'never' must name a row that is spelled out"),
        ("{rows: imagenet, images", "{rows: imagnet, images", "draws.imagenet_levels.rows = 'imagnet' is unknown"),
        ("name: embedded", "name: work", "runs/work is no folder of a profile"),
        ("threads: 1,", "threads: 0,", r"machine.threads: .*greater than or equal to 1 \(got 0\)"),
        ("machine: {", "machine: [", "not valid YAML"),
        ("    resnet-050: [direct]", "    resnet-050: [pair]", "votes.groups.resnet-050: pair has the row 'MDEQ-30A', but the network is no DEQ: direct ones"),
        ("pair: [MDEQ-30A, SRS-MDEQ-1A", "pair: [MDEQ-30A, ResNet, SRS-MDEQ-1A", "votes.groups.small-0.*: pair has the row 'ResNet', but the network is a DEQ: standard"),
        ("pair: [MDEQ-30A, SRS-MDEQ-1A", "pair: [MDEQ-30A, SRS-monDEQ settled, SRS-MDEQ-1A", "small.*: pair has the row 'SRS-monDEQ settled': only a monotone DEQ"),
        ("pair: [MDEQ-30A, SRS-MDEQ-1A", "pair: [MDEQ-30A, monDEQ settled, SRS-MDEQ-1A", "small.*: pair has the row 'monDEQ settled': only a monotone DEQ"),
        ("{small-050: SRS-MDEQ-3A,", "{resnet-050: ResNet, small-050: SRS-MDEQ-3A,", "robustness.runs = 'resnet-050' is no DEQ: one is wanted"),
        ("  runs: {small-050: SRS-MDEQ-3A, large-050: SRS-MDEQ-3A}", "  runs: {}", "robustness.runs: .*at least 1 item"),
        ("arithmetic: {run: small-050", "arithmetic: {run: resnet-050", "arithmetic.run = 'resnet-050' is no DEQ"),
        ("n: 1000, n_alone: 100", "n: 50, n_alone: 51",
         "arithmetic: n_alone = 51 is out of range: 1 to n = 50"),
        ("{run: small-050, images: 2,", "{run: small-050, images: 501,", "arithmetic.images = 501 is out of range: the data set has 500"),
        ("speed: {n: 4000, images: 1", "speed: {n: 4000, images: 501", "speed.images = 501 is out of range: the data set has 500 test images"),
        ("  images: 5\n  n: 1000\n  radii", "  images: 50\n  n: 1000\n  radii", "robustness.images = 50 is out of range: 1 to 25"),
        ("small-025-tuned: {model", "small-025-tuned: {repeats: 1, model", "repeats = 1 must be 0 of a run with a base"),
        ("  no_jacobian: small-050-no-jacobian\n", "", "report.no_jacobian is missing: of the pages only"),
        ("  consistency: {images: 15, n: 1000}", "  consistency: {images: 15, n: 1000, audit: 800}",
         "draws.consistency.audit = 800 must be left out: audits of several sizes"),
        ("samples_10000: {rows: samples, images: 8,", "samples_10000: {rows: samples, images: 7,",
         "draws.samples_10000.images = 7 must be 8, as in draws.samples_1000"),
        ("images: 8, n: 3000, audit: 400", "images: 8, n: 1000, audit: 300", "draws.samples_3000.n = 1000 is another's, too"),
        ("  tuned: {images: 15, n: 1000}", "  tuned: {images: 15, n: 900}", "draws.tuned.n = 900 must be 1000, as in draws.past: .*vote by"),
        ("warmup_steps: [MDEQ-30A, 1 step, 5 steps, 10 steps, 30 steps]", "warmup_steps: [MDEQ-30A, 10 steps]",
         r"rows.warmup_steps needs two serialized rows or more, .*\['10 steps'\]"),
        ("alphas: [0.001, 0.05]", "alphas: []", "coverage.alphas: .*at least 1 item"),
        ("alphas: [0.001, 0.05]", "alphas: [2]", "coverage.alphas.0: .*less than 1"),
        ("coverage: {", "coverage: {mismatch: [], ", "coverage.mismatch: .*at least 1 item"),
        ("coverage: {", "coverage: {large_n: 100, ", "coverage: large_audit = 400 is out of range: at most large_n = 100"),
        ("n0: 50, chains: 50, audit: 200", "n0: 50, chains: 50, audit: 1", "coverage: audit, at alpha = 0.05: audit = 1 .*certify nothing"),
        ("coverage: {", "coverage: {large_audit: 1, ", "coverage: large_audit, at alpha = 0.05: audit = 1 .*certify nothing"),
        ("n: 1000, n0: 50, chains: 50, audit: 200", "n: 5, n0: 50, chains: 50, audit: 2", "coverage: at alpha = 0.001 .*n = 5 is too small for alpha"),
        ("n: 1000, n0: 50, chains", "n: 1000, n0: 4, chains", "coverage.n0: .*greater than or equal to 5"),
        ("  n0: 100", "  n0: 4", "votes.n0 = 4 is out of range: 5 or more"),
        ("  chains: 50 ", "  chains: 2000000 ", "votes.chains: .*less than or equal to 1000000"),
        ("references: {", "references: {small: AS-MDEQ-1N, ", "votes.references.small = 'AS-MDEQ-1N' begins at a fitted start.*from the initial start"),
        ("candidates: [AS-MDEQ-1N mean, AS-MDEQ-1N, AS-MDEQ-2A]", "candidates: [AS-MDEQ-1X, AS-MDEQ-1N]", "starts.candidates: the row 'AS-MDEQ-1X' does not"),
        ("candidates: [AS-MDEQ-1N mean, AS-MDEQ-1N, AS-MDEQ-2A]", "candidates: [AS-MDEQ-1N mean, SRS-MDEQ-1A]", "the row 'SRS-MDEQ-1A' is none that could be"),
        ("candidates: [AS-MDEQ-1N mean, AS-MDEQ-1N, AS-MDEQ-2A]", "candidates: [MDEQ-1A]", "starts.candidates = .* has no amortized row, such as"),
        ("{epochs: 22, batch_size: 96", "{sigma: 0.5, epochs: 22, batch_size: 96", "training.small.sigma = 0.5 must go: it is each run's own, runs.RUN.sigma"),
        ("{jacobian_weight: 0}}", "{jacobian_weight: 0, seed: 3}}", "runs.small-050-no-jacobian.training.seed = 3 must go"),
        ("radii: {digits: [0, 0.25", "radii: {letters: [0, 1], digits: [0, 0.25", "report.radii = 'letters' is unknown: choose one of digits, mnist"),
        ("batch_size: 800, checkpoint", "batch_size: 2000000, checkpoint", "machine.batch_size: .*less than or equal to 1000000"),
        ("[11_main_results, 12_noise_levels,", "[11_main_results, 12_noise_level,", "report.pages.certificates.1: Input should be '11_main"),
        ("    votes: []\n    everything: [19_robustness, 22_record]", "    votes: [22_record]\n    everything: [19_robustness]",
         "report.pages.votes.0: Input should be '24_cifar10'"),
        ("SRS-MDEQ-1A, SRS-MDEQ-3A, AS-MDEQ-1N mean, AS-MDEQ-1N] # Tables 10-15", "SRS-MDEQ-1A, AS-MDEQ-1N mean, AS-MDEQ-1N]",
         "rows.levels: the row = 'SRS-MDEQ-3A' is unknown"),
        ("monDEQ to 0.001, SRS-monDEQ-3A, monDEQ settled, AS-monDEQ settled, SRS-monDEQ settled]", "monDEQ to 0.001, SRS-monDEQ-3A]",
         r"rows.mondeq = \['monDEQ to 0.001', 'SRS-monDEQ-3A'\] needs a row whose votes are settled"),
        ("small-025: {model: small, sigma: 0.25", "small-025: {model: small, sigma: 0.12", "report.past: small-0.. has sigma = 0.12, as small-0..: one"),
        ("  sequential: {images: 15, n: 10000}", "  sequential: {images: 15, n: 12}", "draws.sequential.n = 12 is too small: tests are shown at"),
    ],
)  # fmt: skip
def test_every_fault_is_named_with_its_place_and_what_would_do(tmp_path, old, new, named):
    with pytest.raises(params_file.ParameterError, match=named) as error:
        _load(tmp_path, (old, new))
    assert len(str(error.value).splitlines()) <= 20


def test_attacks_that_no_vote_could_judge_are_refused(tmp_path):
    few = ("  n: 1000\n  radii", "  n: 20\n  radii"), ("alpha: 0.001, audit: 400", "alpha: 0.000000001, audit: 400")
    with pytest.raises(
        params_file.ParameterError, match="robustness.n = 20 at certificates.alpha: n = 19 is too small for alpha"
    ):
        _load(tmp_path, *few)
    few = few[0], ("alpha: 0.001, audit: 400", "alpha: 0.0001, audit: 400")  # enough to certify, but not to name a class
    with pytest.raises(
        params_file.ParameterError, match="robustness.n = 20 is too small for certificates.alpha: not even equal"
    ):
        _load(tmp_path, *few)


def test_the_first_page_needs_a_radius_that_draws_reach_whatever_else_is_shown(tmp_path):
    far = "radii: {cifar10: [0, 0.25", "radii: {cifar10: [0, 1.4"
    with pytest.raises(params_file.ParameterError, match="radii.cifar10 = .*the second is wanted at most 1.350"):
        _load(tmp_path, far, ("1.4, 0.5, 0.75, 1.0, 1.25, 1.5]", "1.4, 1.5]"), text=PROFILES["cifar10"].read_text())


def test_remarks_are_of_data_that_are_there(tmp_path):
    edit = '    cifar10:\n      "Training', '    cifar:\n      "Training'
    with pytest.raises(params_file.ParameterError, match="report.remarks = 'cifar' is unknown: choose one of cifar10"):
        _load(tmp_path, edit, text=PROFILES["cifar10"].read_text())


def test_tests_that_cannot_certify_are_not_shown(tmp_path):
    """At n = 23 Cohen's bound reaches r = 0.25 at sigma = 0.5, a sequential test does not."""
    few = "sequential: {images: 500, n: 10000}", "sequential: {images: 500, n: 23}"
    with pytest.raises(params_file.ParameterError, match="draws.sequential.n = 23 is too small"):
        _load(tmp_path, few, text=PROFILES["cifar10"].read_text())


def test_no_more_images_of_a_folder_are_asked_for_than_votes_are_cast_on(tmp_path):
    text = PROFILES["cifar10"].read_text()
    with pytest.raises(params_file.ParameterError, match="speed.images = 501 is out of range: 1 to votes.images.cifar10 = 500"):
        _load(tmp_path, ("speed: {n: 10000, images: 5,", "speed: {n: 10000, images: 501,"), text=text)


def test_what_may_be_chosen_to_be_deployed_is_timed(tmp_path):
    few = "candidates: [AS-MDEQ-1N mean, AS-MDEQ-1N, AS-MDEQ-2A]", "candidates: [AS-MDEQ-1N, MDEQ-2A]"
    with pytest.raises(
        params_file.ParameterError, match="candidates: the row, to be timed by speed.rows = 'baselines', = 'MDEQ-2A'"
    ):
        _load(tmp_path, few, text=PROFILES["cifar10"].read_text())


def test_the_profile_paper_trains_as_released():
    profile = params.load(PROFILES["paper"])
    for key, run in profile.runs.items():
        model = profile.models[run.model]
        measured = model.data == "imagenet"
        assert (model.overrides.get("std") == [0.2023, 0.1994, 0.201]) != measured, key
        schedule = Training(**run.schedule(profile.training))
        if not model.preset.startswith("resnet"):
            assert schedule.unrolled_jacobian_weight == (0.03 if measured else 0), key
            assert schedule.jacobian_vectors == 2, key


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("    small-012: [levels]", "    small-012: [pair]", "votes.groups.small-012 = .* needs a group with the rows 'levels', for report.small.levels"),
        ("levels: [MDEQ-1A, MDEQ-30A stopped, SRS-MDEQ-1A,", "levels: [MDEQ-1A, MDEQ-30A stopped,", "rows.levels: the row = 'SRS-MDEQ-1A' is unknown"),
        ("pair: [MDEQ-30A stopped, AS-MDEQ-1N]", "pair: [MDEQ-30A stopped]", "rows.pair: the row = 'AS-MDEQ-1N' is unknown"),
        ("direct: {images: 500", "direct: {images: 100", "draws.direct.images = 100 must be 500, as in draws.main"),
        ("plain: resnet20-050", "plain: resnet21-050", "report.plain = 'resnet21-050' is unknown"),
    ],
)  # fmt: skip
def test_what_the_page_of_cifar10_lacks_is_named(tmp_path, old, new, named):
    text = PROFILES["cifar10"].read_text()
    assert text.count(old) == 1
    with pytest.raises(params_file.ParameterError, match=named):
        _load(tmp_path, (old, new), text=text)


def test_the_profile_cifar10_says_how_the_shipped_model_was_trained():
    profile = params.load(PROFILES["cifar10"])
    schedule = Training(**profile.runs["small-050"].schedule(profile.training)).model_dump(mode="json")
    card = checkpoints.read_card("mdeq-small-cifar10-0.50")
    for solver in (part for settings in (schedule, card.training) for part in settings.values() if isinstance(part, dict)):
        solver.pop("ridge_scale")  # of Anderson's method, which trained nothing: absolute then
    assert {name: schedule[name] for name in card.training.keys() & schedule.keys()} == {
        name: value for name, value in card.training.items() if name != "checkpoint_seconds"
    }
    assert schedule["unrolled_jacobian_weight"] == schedule["jacobian_weight"] and schedule["jacobian_vectors"] == 1
    built = models.build(profile.models["small"].preset, **profile.models["small"].overrides)
    assert sum(p.numel() for p in built.parameters()) == card.parameters


def test_sections():
    values = {"a": {"b": [1]}}
    assert params_file.section(values, "a.b") == [1]
    with pytest.raises(params_file.ParameterError, match="no 'a.c.d': 'c' is missing"):
        params_file.section(values, "a.c.d")


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


def test_where_dvc_is_not_its_reading_is_not_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    assert params.load("profiles/smoke.yaml").name == "smoke"


def test_a_profile_takes_anothers_place_without_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("profiles").mkdir()
    for name in ("a", "b"):
        Path(f"profiles/{name}.yaml").write_text(f"name: {name}\n")
    switch.switch("a")
    switch.switch("b")
    Path("params.yaml").write_text("name: c\n")
    with pytest.raises(params_file.ParameterError, match="params.yaml has edits"):
        switch.switch("a")


def test_switching_profiles_loses_no_edit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("profiles").mkdir()
    for name, text in {"a": "name: a\nn: 1\n", "b": "name: b\n"}.items():
        Path(f"profiles/{name}.yaml").write_text(text)
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm begin"):
        subprocess.run(["git", *command.split()], check=True)
    present = Path("params.yaml")
    with pytest.raises(params_file.ParameterError, match="PROFILE = 'c' is unknown: choose one of a, b"):
        switch.switch("c")
    switch.switch("a")
    assert present.read_text() == "name: a\nn: 1\n"
    present.write_text("n: 1\nname: a\n")  # as DVC might rewrite it: a profile all the same
    switch.switch("b")
    assert present.read_text() == "name: b\n"
    present.write_text("name: a\nn: 2\n")
    with pytest.raises(
        params_file.ParameterError, match="params.yaml has edits that neither a profile nor git's last commit has"
    ):
        switch.switch("b")
    assert present.read_text() == "name: a\nn: 2\n"
    subprocess.run(["git", "add", "params.yaml"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "edit"], check=True)
    switch.switch("b")
    assert present.read_text() == "name: b\n"
