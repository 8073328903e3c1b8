"""Bad input of every kind is refused at once, by a message that names the parameter and says what would do.

A case is ``(id, call, words)``: ``call`` takes a folder of its own and must raise ValueError, or a subclass, within SECONDS,
with a message that has all of the words. Append cases to CASES.
"""

import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import srs
from srs import models
from srs.certificates.certify import CertifySettings, Confidence
from srs.common.settings import Section
from srs.data.datasets import DataConfig
from srs.deq.solvers import Solver
from srs.models.mdeq import MDEQConfig
from srs.models.resnet import ResNetConfig
from srs.starts import StartSettings
from srs.training.train import Adversary, Training
from srs.votes.samplers import ReleasedSampler, SerializedSampler, StandardSampler
from study import params
from study.arithmetic import Arithmetic
from study.bench import Bench
from study.common.engine import Machine
from study.common.runs import Run
from study.coverage import Coverage
from study.known_answers import LinearDEQ
from study.robustness import Attack
from study.votes.plan import Draws, Voting

SECONDS = 2


class Mixed(Section):
    """Kinds of fields that no section has."""

    either: int | Literal["auto"] = "auto"
    level: Literal[1, 2] = 1
    shares: dict[str, tuple[int, float] | None] = {}


TEXT = (Path(__file__).parent.parent / "profiles" / "smoke.yaml").read_text(encoding="utf-8")


def _edited(*edits):
    """A call that checks params.yaml with some passages replaced."""
    text = TEXT
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return _holding(text.encode())


def _holding(content: bytes):
    """A call that checks a params.yaml of this content."""

    def check(folder):
        (folder / "params.yaml").write_bytes(content)
        params.load(folder / "params.yaml")

    return check


def _of(section, **values):
    """A call that makes a section of these values."""
    return lambda folder: section(**values)


ONE, NUMBER, WANTED = "greater than or equal to 1", "a number is wanted", "a whole number is wanted"

FILE = [
    ("no file", lambda folder: params.load(folder / "params.yaml"), ["params.yaml cannot be read", "No such file"]),
    ("a folder", params.load, ["cannot be read", "Is a directory"]),
    ("empty file", _holding(b""), ["params.yaml is empty: names and their values are wanted"]),
    ("comments alone", _holding(b"# sigma\n"), ["is empty"]),
    ("a list", _holding(b"- active\n"), ["holds a list: names and their values are wanted"]),
    ("a number", _holding(b"5"), ["holds a int"]),
    ("not UTF-8", _holding(b"active: \xff"), ["params.yaml is not in UTF-8", "position 8"]),
    ("zero bytes", _holding(b"a: \x00"), ["is not valid YAML"]),
    ("a tab", _holding(b"a:\n\t- b"), ["is not valid YAML", "line 2"]),
    ("no such day", _holding(b"a: 2020-13-45"), ["is not valid YAML", "month"]),
    ("too many digits", _holding(b"a: " + b"1" * 5000), ["is not valid YAML", "limit"]),
    ("deeply nested", _holding(b"[" * 3000), ["is not valid YAML"]),
    ("deep, but closed", _holding(b"a: " + b"[" * 3000 + b"]" * 3000), ["nested too deeply"]),
    ("two documents", _holding(b"a: 1\n---\nb: 2\n"), ["is not valid YAML", "single document"]),
    ("unknown anchor", _edited(("alpha: 0.001", "alpha: *level")), ["is not valid YAML: found undefined alias", "column 23"]),
    ("contains itself", _holding(b"samplers: &a [*a]"), ["samplers: Input should be a valid dictionary"]),
    ("name twice", _edited(("name: smoke\n", "name: smoke\nname: again\n")), ["YAML 1.2", "duplicate key", "name"]),
    ("wrong whole", _holding(b"samplers: {}"), ["runs: Field required"]),
]

#: Values that YAML 1.1 and 1.2 read differently.
READINGS = [
    (f"YAML: {value}", _edited(("{epochs: 2,", f"{{epochs: {value},")), ["training.tiny.epochs", *read])
    for value, read in {
        "5e-1": ["'5e-1' in YAML 1.1", "0.5 in 1.2", "0.5 for 5e-1"],
        "1e4": ["'1e4' in YAML 1.1", "10000.0 in 1.2"],
        "0400": ["256 in YAML 1.1", "400 in 1.2"],
        "0o17": ["'0o17' in YAML 1.1", "15 in 1.2"],
        "yes": ["True in YAML 1.1", "'yes' in 1.2"],
        "on": ["True in YAML 1.1", "'on' in 1.2"],
    }.items()
] + [
    ("YAML: 12:30:45", _edited(("n0: 100\n", "n0: 12:30:45\n")), ["votes.n0 is 45045 in YAML 1.1", "'12:30:45' in 1.2"]),
    ("YAML: a name", _edited(("  small-025: {model", "  yes: {model")), ["a name in runs is True", "'yes' in 1.2"]),
    ("YAML: text", _edited(("digits: CIFAR-10", "digits: no")), ["report.stands_for.digits is False", "'no' in 1.2"]),
]

NAMES = [
    (f"name: run {new}", _edited(("  small-025: {model", f"  {new}: {{model")), [f"runs.{shown}: the name {shown!r} must have"])
    for new, shown in {
        "small-0.25": "small-0.25",
        "small 025": "small 025",
        '"small@025"': "small@025",
        "a/b": "a/b",
        "..": "..",
        '"-x"': "-x",
        '""': "",
        "$(id)": "$(id)",
        "caf\u00e9": "caf\u00e9",
        r'"a\n"': "a\n",
    }.items()
] + [
    ("name: data", _edited(("  mnist: {name", "  m.nist: {name"), ("data: mnist", "data: m.nist")), ["'m.nist' must have"]),
    ("name: past", _edited(("past: {small-050:", "past: {small;050:")), ["report.past.small;050", "'small;050' must have"]),
    ("name: page", _edited(("22_record]", "22 record]")), ["pages.everything.1: Input should be", "(got '22 record')"]),
    ("name: a number", _edited(("  small-025: {model", "  25: {model")), ["runs.25", "valid string"]),
    ("name: profile", _edited(("name: smoke", "name: ../up")), ["name: the name '../up' must have"]),
    ("name: taken", _edited(("name: smoke", "name: notebooks")), ["name: runs/notebooks is no folder of a profile"]),
]

PARAMETERS = [
    ("misspelt", _edited(("points: 200", "point: 200")), ["starts.point: no such parameter; did you mean points"]),
    ("misspelt schedule", _edited(("{epochs: 2,", "{epoch: 2,")), ["training.tiny.epoch: Extra inputs are not permitted"]),
    (
        "truth for a number",
        _edited(("small-025: {model: tiny, sigma: 0.25", "small-025: {model: tiny, sigma: true")),
        ["sigma", NUMBER],
    ),
    ("text for a number", _edited(("runs: 40", 'runs: "40"')), ["coverage.runs: a whole number is wanted, not text: write 40"]),
    ("number for text", _edited(("preset: mdeq-tiny}", "preset: 5}")), ["preset: Input should be a valid string (got 5)"]),
    ("fraction", _edited(("points: 200", "points: 200.5")), ["starts.points: a whole number is wanted (got 200.5)"]),
    ("nothing", _edited(("points: 200", "points: null")), ["starts.points", "valid integer"]),
    ("a list for a number", _edited(("points: 200", "points: [200]")), ["starts.points", "valid integer"]),
    ("NaN", _edited(("alpha: 0.001", "alpha: .nan")), ["certificates.alpha", "nan"]),
    ("infinity", _edited(("radii: [0.25, 0.5]", "radii: [0.25, .inf]")), ["robustness.radii.1", "finite"]),
    (
        "truth in a list",
        _edited(("mismatch: [0, 0.02]", "mismatch: [0, true]")),
        ["coverage.mismatch.1: a number", "(got True)"],
    ),
    ("negative", _edited(("repeats: 1", "repeats: -1")), ["speed.repeats", ONE, "(got -1)"]),
    ("unknown data", _edited(("data: mnist", "data: minst")), ["data = 'minst' is unknown: choose one of digits, mnist"]),
    ("unknown run", _edited(("resnet: resnet-050", "resnet: vgg")), ["report.resnet = 'vgg' is unknown: choose one of"]),
    (
        "unknown method",
        _edited(("anderson, steps: 30, stop: rel", "newton, steps: 30, stop: rel")),
        ["solver.method", "'anderson'"],
    ),
    (
        "override",
        _edited(("{depth: 8}", "{depht: 8}")),
        ["models.resnet.overrides.depht: Extra inputs are not permitted (got 8)"],
    ),
    ("override by text", _edited(("{depth: 8}", '{depth: "8"}')), ["depth: a whole number is wanted, not text: write 8"]),
    (
        "override of the preset",
        _edited(("{depth: 8}", "{preset: a}")),
        ["overrides.preset = 'a' must go: choose another preset"],
    ),
    (
        "override of the family",
        _edited(("{depth: 8}", "{family: a}")),
        ["overrides.family = 'a' must go: choose another preset"],
    ),
]

SECTIONS = [
    ("a union: truth", _of(Mixed, either=True), ["either", WANTED]),
    ("a union: text", _of(Mixed, either="5"), ["either", "not text: write 5"]),
    ("a literal: truth", _of(Mixed, level=True), ["level", "a whole number is wanted, not a truth value"]),
    ("in depth: truth", _of(Mixed, shares={"a": None, "b": (1, True)}), ["shares.b.1", NUMBER]),
    ("in a generator: truth", _of(Coverage, alphas=(alpha for alpha in (0.05, True))), ["alphas.1", NUMBER]),
    ("in an array: truth", _of(Coverage, alphas=np.array([True])), ["alphas.0", NUMBER]),
    ("Solver: truth", _of(Solver, steps=True), ["steps", "a whole number is wanted, not a truth value"]),
    ("Solver: numpy's truth", _of(Solver, steps=np.True_), ["steps", "not a truth value"]),
    ("Solver: torch's truth", _of(Solver, steps=torch.tensor(True)), ["steps", "not a truth value"]),
    ("Solver: text", _of(Solver, tolerance="1e-3"), ["tolerance", "not text: write 0.001 (YAML 1.1 takes 1e-3 for text)"]),
    ("Solver: words", _of(Solver, tolerance="small"), ["tolerance", "a number is wanted, not text"]),
    ("Solver: bytes", _of(Solver, steps=b"5"), ["steps", WANTED]),
    ("Solver: method", _of(Solver, method="newton"), ["method", "'naive', 'anderson' or 'broyden'"]),
    ("Solver: zero", _of(Solver, steps=0), ["steps", ONE]),
    ("Solver: NaN steps", _of(Solver, steps=float("nan")), ["steps", WANTED]),
    ("Solver: rounded", _of(Solver, steps=float(1 << 53)), ["steps", WANTED]),
    ("Solver: unknown", _of(Solver, step=3), ["step", "not permitted"]),
    ("Training: text", _of(Training, sigma="5e-1"), ["sigma", "write 0.5 (YAML 1.1 takes 5e-1 for text)"]),
    ("Training: truth", _of(Training, sigma=True), ["sigma", NUMBER]),
    ("Training: batch", _of(Training, batch_size=1), ["batch_size", "greater than or equal to 2"]),
    ("Training: nested", _of(Training, forward={"steps": "3"}), ["forward.steps", WANTED]),
    ("Training: infinity", _of(Training, learning_rate=np.inf), ["learning_rate", "finite"]),
    ("Training: seed", _of(Training, seed=1 << 63), ["seed", "less than 9223372036854775808"]),
    ("Training: optimizer", _of(Training, optimizer="lion"), ["optimizer", "'adam' or 'sgd'"]),
    ("Adversary: text", _of(Adversary, epsilon="0.5"), ["epsilon", "a number is wanted, not text: write 0.5"]),
    ("Adversary: optional", _of(Adversary, step_size=False), ["step_size", NUMBER]),
    ("DataConfig: number for a truth value", _of(DataConfig, flip=1), ["flip", "true or false is wanted"]),
    ("DataConfig: text for a truth value", _of(DataConfig, flip="yes"), ["flip", "true or false is wanted, not text"]),
    ("DataConfig: size", _of(DataConfig, image_size="32"), ["image_size", "write 32"]),
    ("DataConfig: negative", _of(DataConfig, crop_padding=-1), ["crop_padding", "greater than or equal to 0"]),
    ("DataConfig: name", _of(DataConfig, name="letters"), ["name", "'digits', 'mnist', 'cifar10' or 'folder'"]),
    ("Run: truth", _of(Run, model="m", sigma=True), ["sigma", NUMBER]),
    ("Run: zero", _of(Run, model="m", sigma=0), ["sigma", "greater than 0"]),
    ("Voting: text", _of(Voting, images={"digits": "2"}, groups={"a": ["b"]}), ["images.digits", "write 2"]),
    ("Voting: no groups", _of(Voting, images={"digits": 2}, groups={}), ["groups", "at least 1 item"]),
    ("Draws: text", _of(Draws, images="2", n=9), ["images", "write 2"]),
    ("Draws: negative", _of(Draws, images=1, n=-5), ["n", ONE]),
    ("Machine: optional", _of(Machine, threads=True), ["threads", WANTED]),
    ("Machine: zero", _of(Machine, checkpoint_seconds=0), ["checkpoint_seconds", "greater than 0"]),
    ("StandardSampler", _of(StandardSampler, start="zero"), ["start", "'initial', 'mean' or 'learned'"]),
    ("SerializedSampler", _of(SerializedSampler, restart=1.5), ["restart", WANTED]),
    ("StartSettings: text", _of(StartSettings, points="many"), ["points", "a whole number is wanted, not text"]),
    ("StartSettings: loss", _of(StartSettings, learning_rate=0), ["learning_rate", "greater than 0"]),
    ("Attack: negative", _of(Attack, samples=-1), ["samples", "greater than or equal to 0"]),
    ("Attack: a list", _of(Attack, step_size=[0.1]), ["step_size", "valid number"]),
    ("Confidence", _of(Confidence, alpha="1e-3"), ["alpha", "write 0.001"]),
    ("CertifySettings: audit draw", _of(CertifySettings, audit_draw="last"), ["audit_draw", "'random' or 'first_batch'"]),
    ("Coverage: a list", _of(Coverage, alphas=[0.05, "0.001"]), ["alphas.1", "write 0.001"]),
    ("Arithmetic", _of(Arithmetic, run=5), ["run", "valid string"]),
    ("Bench: a tuple", _of(Bench, sizes=(10, True)), ["sizes.1", WANTED]),
    (
        "MDEQConfig: a tuple",
        _of(MDEQConfig, channels=[8, 16.5], head_channels=[4, 8], final_channels=32),
        ["channels.1", WANTED],
    ),
    ("ResNetConfig: a tuple", _of(ResNetConfig, widths=(16, 32, "64")), ["widths.2", WANTED]),
]

LINEAR = torch.nn.Linear(8, 3).eval()
CHAIN = SerializedSampler()
RESNET = models.build("resnet-110", depth=8, image_size=8, num_classes=3).eval()


class NoDEQ:
    """Lacks the method f."""

    inject = initial_state = head = staticmethod(lambda x: x)


def _asked(how=srs.certify, model=LINEAR, image=None, **settings):
    """A call of one of the ways to ask for a certificate."""
    image = torch.rand(8) if image is None else image
    given = [image] if how in (srs.certify_at, srs.certify_until) else image
    return lambda _: how(model, given, **{"sigma": 0.5, "n": 100} | settings)


def _many(data, model=LINEAR, out="rows.csv", **settings):
    return lambda folder: srs.certify_many(model, data, out=folder / out, **{"sigma": 0.5, "n": 100} | settings)


def _solved(f=lambda z, x: z, rows=3):
    return lambda _: srs.solve(f, torch.zeros(rows, 4), torch.zeros(3, 4), Solver())


ASKED = [
    ("sigma: zero", _asked(sigma=0), ["sigma", "greater than 0"]),
    ("sigma: true", _asked(sigma=True), ["sigma", "a number is wanted"]),
    ("sigma: text", _asked(sigma="0.5"), ["sigma", "a number is wanted, not text"]),
    ("sigma: NaN", _asked(sigma=float("nan")), ["sigma", "finite"]),
    ("alpha: too small to compute", _asked(alpha=1e-170), ["alpha", "1e-100 <= alpha < 1"]),
    ("alpha: one", _asked(alpha=1.0), ["alpha", "1e-100 <= alpha < 1"]),
    ("n: beyond memory", _asked(n=10**15), ["n\n", "less than or equal to 100000000"]),
    ("n: too few for alpha", _asked(n=5), ["n = 5", "at least 10"]),
    ("n0: none", _asked(n0=0), ["n0", "greater than or equal to 1"]),
    ("batch_size: none", _asked(batch_size=0), ["batch_size"]),
    ("batch_size: beyond memory", _asked(batch_size=10**9), ["batch_size", "1000000"]),
    ("seed: negative", _asked(seed=-1), ["seed"]),
    ("seed: a fraction", _asked(seed=0.5), ["seed", WANTED]),
    ("an unknown setting", _asked(auditt=5), ["auditt"]),
    ("index: negative", _asked(index=-1), ["index = -1", "from 0 to 2^63 - 1"]),
    ("index: true", _asked(index=True), ["index = True"]),
    ("index: a fraction", _asked(index=1.5), ["index = 1.5"]),
    ("image: an array", _asked(image=np.zeros(8, np.float32)), ["image", "tensor of floats", "numpy.ndarray of float32"]),
    ("image: of other channels", _asked(model=RESNET, image=torch.zeros(1, 8, 8)), ["(1, 8, 8)", "(C, H, W) = (3, 8, 8)"]),
    ("image: of another size", _asked(model=RESNET, image=torch.zeros(3, 9, 8)), ["(3, 9, 8)", "(C, H, W) = (3, 8, 8)"]),
    ("image: integers", _asked(image=torch.zeros(8, dtype=torch.uint8)), ["image", "torch.uint8"]),
    ("image: complex", _asked(image=torch.zeros(8, dtype=torch.complex64)), ["image", "complex64"]),
    ("image: NaN", _asked(image=torch.full((8,), torch.nan)), ["image", "not finite"]),
    ("image: nothing", _asked(image=torch.zeros(0)), ["image", "(0,)"]),
    ("model: a name", _asked(model="resnet"), ["model = a str", "neither a classifier"]),
    ("model: a DEQ but for f", _asked(model=NoDEQ(), sampler=StandardSampler()), ["model", "lacks f"]),
    ("model: in training mode", _asked(model=torch.nn.Dropout()), ["training mode", "eval()"]),
    ("model: one logit", _asked(model=torch.nn.Linear(8, 1).eval()), ["1 logit a row", "at least 2"]),
    ("output_key", _asked(model=lambda x: {"logits": LINEAR(x)}, output_key="out"), ["output_key = 'out'", "'logits'"]),
    ("output_key: missing", _asked(model=lambda x: (LINEAR(x), x)), ["output_key = 0 or 1"]),
    ("sampler: a name", _asked(sampler="standard"), ["sampler = 'standard'", "srs.StandardSampler"]),
    ("sampler: of DEQs", _asked(sampler=StandardSampler()), ["model = a Linear is no DEQ"]),
    ("reference: a name", _asked(model=LinearDEQ(8).eval(), sampler=CHAIN, audit=50, reference="30A"), ["reference = '30A'"]),
    ("audit: more than n", _asked(model=LinearDEQ(8).eval(), sampler=CHAIN, audit=500), ["audit = 500", "at most n = 100"]),
    ("audit: too few", _asked(model=LinearDEQ(8).eval(), sampler=CHAIN, audit=5), ["audit = 5", "at least 17"]),
    (
        "audit_draw: nothing after the warm-up",
        _asked(model=LinearDEQ(8).eval(), sampler=SerializedSampler(), n=200, audit=150, audit_draw="first_batch"),
        ["audit_draw = 'first_batch'", "takes 400 draws", "of 300", "fewer chains"],
    ),
    ("start: unknown", _asked(model=LinearDEQ(8).eval(), sampler=StandardSampler(start="mean")), ["start = 'mean'", "initial"]),
    ("predict: sigma", _asked(srs.predict, sigma=-1), ["sigma"]),
    (
        "predict: no guarantee",
        _asked(srs.predict, model=LinearDEQ(8).eval(), sampler=CHAIN, audit=50, estimator="released_code"),
        ["predict needs a guarantee", "'released_code'"],
    ),
    (
        "predict: votes that depend on their batch",
        _asked(srs.predict, model=LinearDEQ(8).eval(), sampler=ReleasedSampler()),
        ["predict needs independent votes", "'released'"],
    ),
    ("certify_at: r out of reach", _asked(srs.certify_at, r=3.0), ["r = 3.0", "0 to"]),
    ("certify_at: r negative", _asked(srs.certify_at, r=-0.1), ["r = -0.1"]),
    ("certify_at: r NaN", _asked(srs.certify_at, r=float("nan")), ["r = nan"]),
    ("certify_at: r true", _asked(srs.certify_at, r=True), ["r = True"]),
    ("certify_at: r text", _asked(srs.certify_at, r="0.1"), ["r = '0.1'"]),
    ("certify_at: an index", _asked(srs.certify_at, r=0.1, indices=[1.9]), ["index = 1.9"]),
    ("certify_at: indices", _asked(srs.certify_at, r=0.1, indices=[1, 2]), ["indices number 2 images"]),
    (
        "certify_at: a chain",
        _asked(srs.certify_at, model=LinearDEQ(8).eval(), r=0.1, sampler=CHAIN),
        ["a sequential test needs independent votes", "'serialized'"],
    ),
    ("certify_until: no gain", _asked(srs.certify_until, gain=0), ["gain = 0", "above 0"]),
    ("certify_until: a chain", _asked(srs.certify_until, gain=0.1, model=LinearDEQ(8).eval(), sampler=CHAIN), ["'serialized'"]),
    ("selection: unknown", _asked(selection="margin"), ["selection", "'votes' or 'clean'"]),
    (
        "selection: of a sampler without a vote of its own",
        _asked(model=LinearDEQ(8).eval(), sampler=ReleasedSampler(), selection="clean"),
        ["selection = 'clean' needs independent votes", "'released'"],
    ),
    ("certify_many: format", _many(torch.rand(2, 1, 2, 4), format="tsv"), ["format = 'tsv'", "csv, cohen"]),
    ("certify_many: cohen without labels", _many(torch.rand(2, 1, 2, 4), format="cohen"), ["needs labels"]),
    ("certify_many: sampler", _many(torch.rand(2, 1, 2, 4), sampler="standard"), ["sampler = 'standard'"]),
    ("certify_many: no folder", _many(torch.rand(2, 1, 2, 4), out="nowhere/rows.csv"), ["out = ", "cannot be written"]),
    ("certify_many: one image", _many(torch.rand(1, 2, 4)), ["data", "(n, C, H, W)"]),
    ("certify_many: nothing", _many([]), ["data has no images"]),
    ("certify_many: a label", _many([(torch.rand(8), "cat")]), ["image 0", "'cat'"]),
    ("solve: rows", _solved(rows=2), ["z0 has 2 rows and x has 3"]),
    ("solve: f's shape", _solved(lambda z, x: z[:, :2]), ["f maps a state of shape (3, 4) to (3, 2)"]),
    ("solve: f's type", _solved(lambda z, x: [z]), ["f maps a state of shape (3, 4) to list"]),
    ("Solver: batch stops of independent votes", _of(StandardSampler, solver=Solver(stop="batch")), ["stop = 'batch'"]),
    ("Solver: ridge_scale", _of(Solver, ridge_scale="none"), ["ridge_scale", "'relative' or 'absolute'"]),
    ("fit_starts: sigma", lambda _: srs.fit_starts(LinearDEQ(8).eval(), torch.rand(9, 8), float("nan")), ["sigma = nan"]),
    ("fit_starts: no DEQ", lambda _: srs.fit_starts(LINEAR, torch.rand(9, 8), 0.5), ["no DEQ", "initial_state"]),
    ("load: unknown", lambda _: srs.load("resnet"), ["model = 'resnet' is unknown"]),
]

CASES = [*FILE, *READINGS, *NAMES, *PARAMETERS, *SECTIONS, *ASKED]


@pytest.mark.parametrize("call, words", [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_refused_at_once_by_name(call, words, tmp_path):
    began = time.process_time()
    with pytest.raises(ValueError) as refused:
        call(tmp_path)
    assert time.process_time() - began < SECONDS
    told = str(refused.value)
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    "section, name, given, kept",
    [
        (Training, "seed", np.int64((1 << 53) + 1), (1 << 53) + 1),
        (Training, "seed", torch.tensor((1 << 53) + 1), (1 << 53) + 1),
        (Training, "sigma", np.float32(0.1), float(np.float32(0.1))),
        (Training, "sigma", 1, 1.0),
        (Machine, "threads", None, None),
        (CertifySettings, "n", 1e4, 10_000),
        (DataConfig, "flip", np.True_, True),
        (DataConfig, "name", np.str_("mnist"), "mnist"),
        (Bench, "sizes", [np.int64(10), 20.0], (10, 20)),
        (Coverage, "alphas", (0.05, np.float64(0.001)), [0.05, 0.001]),
        (Coverage, "alphas", np.array([0.05, 0.001]), [0.05, 0.001]),
        (Mixed, "either", "auto", "auto"),
        (Mixed, "level", np.int64(2), 2),
        (Mixed, "shares", {"a": [1.0, 2]}, {"a": (1, 2.0)}),
        (StandardSampler, "solver", {"steps": np.int32(3)}, Solver(steps=3)),
    ],
)
def test_good_input_stays_exact(section, name, given, kept):
    found = getattr(section(**{name: given}), name)
    assert found == kept and type(found) is type(kept)


def test_the_files_of_these_cases_are_good_but_for_their_fault(tmp_path):
    _edited()(tmp_path)
