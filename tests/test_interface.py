"""What a stranger's model may do, and what it may not: no certificate is another classifier's, or false, without a word."""

import copy
import dataclasses
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import srs
from srs.deq.interface import LOOKED_AT, checked
from srs.deq.solvers import Solver, Unspoiled
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import MARGIN, UNDECIDED, DirectSampler, ReleasedSampler, decide
from study.known_answers import LinearDEQ

SETTINGS = {"sigma": 0.25, "n": 400, "alpha": 0.001}
SERIALIZED = {"audit": 200, "sampler": srs.SerializedSampler(solver=Solver(steps=2), chains=50)}
PAGE = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs" / "your_deq.md").read_text("utf-8"), re.S)


def _linear(classes=3, size=8, scale=1.0):
    torch.manual_seed(1)
    linear = nn.Linear(size, classes).eval()
    return lambda x: scale * linear(x.flatten(1))


def _few(found) -> tuple:
    return found.prediction, found.n_a, found.n1, found.n2, found.undecided, found.radius


# types that wrap


@pytest.mark.parametrize("top", [3, 40_000, 65_535, 65_539])
def test_a_class_may_have_any_number(top):
    def model(x):
        return torch.zeros(len(x), 70_000).scatter_(1, torch.full((len(x), 1), top), 1.0)

    assert srs.certify(model, torch.zeros(1), sigma=0.5, n=100, n0=10, batch_size=50).prediction == top
    assert srs.predict(model, torch.zeros(1), sigma=0.5, n=100, n0=10, batch_size=50) == top


def test_classes_that_int16_confuses_are_two():
    def coin(x):
        return torch.zeros(len(x), 70_000).scatter_(1, torch.where(x > 0, 3, 65_539), 1.0)

    assert srs.certify(coin, torch.zeros(1), sigma=0.5, n=300, batch_size=50).prediction == srs.ABSTAIN


# models that overwrite what they are given


def _overwriting_classifier(x):
    s = 1e-4 * x.sub_(0.5).div_(0.25).mean(1)
    return torch.stack([s, -s], 1)


def test_a_classifier_may_overwrite_its_batch_and_never_the_users_image():
    image = torch.full((64,), 0.52)
    found = srs.certify(_overwriting_classifier, image, sigma=0.25, n=1_000)
    plain = srs.certify(lambda x: _overwriting_classifier(x.clone()), image, sigma=0.25, n=1_000)
    assert found == plain and found.prediction in (0, srs.ABSTAIN)
    assert (image == 0.52).all()


class Overwriting(nn.Module):
    """z = tanh(W z + u); one of its methods works in place."""

    def __init__(self, where=""):
        super().__init__()
        torch.manual_seed(0)
        self.where = where
        self.w = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.w.weight.mul_(0.5)
        self.start = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.calls = 0

    def inject(self, x):
        return x.sub_(0.3).mul_(2.0) if self.where == "inject" else (x - 0.3) * 2.0

    def initial_state(self, u):
        if self.where == "initial_state":
            u.zero_()
        return self.start.expand(len(u), -1)

    def f(self, z, u):
        out = torch.tanh(self.w(z) + u)
        if self.where == "f":
            return z.copy_(out)
        if self.where == "f, by .data":
            z.data.copy_(out)
            return z
        if self.where == "f, by NumPy":
            z.numpy()[:] = out.numpy()
            return z
        if self.where == "f, the injection":
            u.mul_(0.9)
        return out

    def head(self, z):
        logits = torch.cat([z[:, :2], -z[:, :1]], dim=1)
        if self.where == "head":
            z.fill_(7.0)
        return logits


WHERE = ["inject", "initial_state", "f", "f, by .data", "f, by NumPy", "f, the injection", "head"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("start", ["standard", "one step", "previous", "clean", "batch_mean"])
def test_a_deq_may_overwrite_what_its_methods_are_given(where, start):
    """Every method in place gives the certificate of the same model that makes new tensors."""
    samplers = {"standard": srs.StandardSampler(), "one step": srs.StandardSampler(solver=Solver(method="naive", steps=1))}
    sampler = samplers.get(start) or srs.SerializedSampler(solver=Solver(steps=2), chains=50, start=start)
    image, model = torch.full((8,), 0.6), Overwriting(where).eval()
    found = srs.certify(model, image, sampler=sampler, audit=200, **SETTINGS)
    assert _few(found) == _few(srs.certify(Overwriting().eval(), image, sampler=sampler, audit=200, **SETTINGS))
    assert (image == 0.6).all() and (model.start == 0).all()
    assert found.n_a > 0 and found.undecided < 400


@pytest.mark.parametrize("where", [w for w in WHERE if w.startswith("f")])
@pytest.mark.parametrize("stop", ["fixed", "relative"])
def test_solve_keeps_its_arguments(where, stop):
    model, z0, x = Overwriting(where), torch.zeros(5, 8), torch.randn(5, 8)
    kept = x.clone()
    found = srs.solve(model.f, z0, x, Solver(steps=20, stop=stop))
    plain = srs.solve(Overwriting().f, z0, x, Solver(steps=20, stop=stop))
    assert torch.equal(found.z, plain.z) and torch.equal(found.evaluations, plain.evaluations)
    assert (z0 == 0).all() and torch.equal(x, kept)


def test_a_function_that_begins_to_overwrite_is_found_out():
    calls = []

    def f(z):
        calls.append(len(z))
        return z.mul_(2.0) if len(calls) > 2 else z * 2.0

    careful, z = Unspoiled(f), torch.ones(3)
    careful(z), careful(z)
    with pytest.raises(ValueError, match="f overwrote what it was given, though not at first"):
        careful(z)


def test_inference_mode_has_no_versions_and_needs_none():
    with torch.inference_mode():
        found = srs.certify(Overwriting("f").eval(), torch.full((8,), 0.6), **SETTINGS)
    assert _few(found) == _few(srs.certify(Overwriting().eval(), torch.full((8,), 0.6), **SETTINGS))


# rows that depend on one another


class Plain:
    """No module: it only holds one."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model(x)


def _net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *layers, nn.Linear(32, 3))


def _behind_a_lambda(model):
    return lambda x: model(x)


def _statistics():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 3)).eval()


def _traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        return torch.jit.trace(_net(nn.BatchNorm1d(32)).train(), torch.rand(4, 1, 8, 8), check_trace=False).eval()


DEPENDENT = {
    "statistics of the batch": _statistics,
    "a lambda around training mode": lambda: _behind_a_lambda(_net(nn.BatchNorm1d(32)).train()),
    "an object that holds training mode": lambda: Plain(_net(nn.BatchNorm1d(32)).train()),
    "dropout behind a lambda": lambda: _behind_a_lambda(_net(nn.Dropout()).train()),
    "scaled by the batch": lambda: lambda x: ((x - x.min()) / (x.max() - x.min())).flatten(1)[:, :3],
    "the first row is special": lambda: lambda x: (x - x[:1]).flatten(1)[:, :3],
    "sorted rows": lambda: lambda x: x.flatten(1)[:, :3].sort(dim=0).values,
    "other in large batches": lambda: lambda x: x.flatten(1)[:, :3] * (1 if len(x) < 50 else 2),
    "confident": lambda: lambda x: x.flatten(1)[:, :3] * 0.1 + x.mean() + torch.tensor([50.0, 0.0, 0.0]) * (1 + x.mean()),
    "a counter": lambda: Counting(),
}


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x.flatten(1)[:, :3] + 0.1 * self.calls * torch.arange(3)


_ALIKE_IN_SMALL_BATCHES = "other in large batches"


@pytest.mark.parametrize(
    "kind, batch_size",
    [
        (kind, size)
        for kind in (*DEPENDENT, "traced in training mode")
        for size in ((400,) if kind == _ALIKE_IN_SMALL_BATCHES else (400, 7, 1))
    ],
)
def test_rows_that_depend_on_one_another_are_found_out(kind, batch_size):
    model = _traced() if kind == "traced in training mode" else DEPENDENT[kind]()
    with pytest.raises(ValueError, match="rows depend on one another|other logits when it is asked twice|more than 1 value"):
        srs.certify(model, torch.rand(1, 8, 8), batch_size=batch_size, **SETTINGS)


WAYS_IN = {
    "predict": lambda model, x, out: srs.predict(model, x, **SETTINGS),
    "certify_at": lambda model, x, out: srs.certify_at(model, [x] * 3, 0.1, **SETTINGS),
    "certify_until": lambda model, x, out: srs.certify_until(model, [x], gain=0.1, **SETTINGS),
    "certify_many": lambda model, x, out: srs.certify_many(model, x[None], out=out, progress=False, **SETTINGS),
}


@pytest.mark.parametrize("how", WAYS_IN)
def test_every_way_in_looks_at_the_rows(how, tmp_path):
    with pytest.raises(ValueError, match="rows depend on one another"):
        WAYS_IN[how](_statistics(), torch.rand(1, 8, 8), tmp_path / "rows.csv")


@pytest.mark.parametrize("method", ["inject", "f", "head"])
@pytest.mark.parametrize("batch_size", [400, 1])
@pytest.mark.parametrize("sampler", [None, SERIALIZED["sampler"]], ids=["standard", "serialized"])
def test_a_deq_whose_rows_depend_on_one_another_is_found_out(method, batch_size, sampler):
    model = Overwriting().eval()
    plain = getattr(model, method)
    setattr(model, method, lambda *tensors: plain(*tensors) + tensors[0].mean())
    if method == "f":
        model.f = lambda z, u: torch.tanh(plain(z, u) + u.mean())
    if method == "head":
        model.head = lambda z: plain(z) * (1 + z.std(unbiased=False))
    with pytest.raises(ValueError, match="rows depend on one another"):
        srs.certify(model, torch.full((8,), 0.6), sampler=sampler, audit=200, batch_size=batch_size, **SETTINGS)


def test_looking_costs_what_it_says_and_changes_no_vote():
    seen = []

    def model(x):
        seen.append(len(x))
        return _linear()(x)

    image = torch.rand(8)
    found = srs.certify(model, image, sigma=0.25, n=1_000)
    assert found.evaluations == sum(seen)
    assert found.evaluations - 1_100 <= 0.02 * 1_000 and sum(seen) >= 1_100 + 2 * LOOKED_AT + 1
    votes = DirectSampler().sample(_linear(), NoisyCopies(image, 0, 0.25, 0), np.arange(1_100), 400)
    assert found.n_a == (votes.classes[100:] == found.prediction).sum()


def test_rows_are_looked_at_once_for_a_model_and_a_call():
    model = checked(_linear(), rows_checked=False)
    image = torch.rand(8)
    spent = [srs.certify(model, image, **SETTINGS).evaluations for _ in range(3)]
    assert spent[0] - spent[1] == 2 * LOOKED_AT + 1 and spent[1] == spent[2]


def test_rounding_is_no_dependence(trained, digits):
    """Fixed and stopped solves of a trained MDEQ, whose rows differ from batch to batch by rounding alone."""
    image = digits.test.images(np.array([7]))[0]
    for stop in ("fixed", "relative"):
        for batch_size in (400, 30, 1):
            sampler = srs.StandardSampler(solver=Solver(steps=12, stop=stop))
            srs.certify(trained, image, sigma=0.25, n=50, n0=5, batch_size=batch_size, sampler=sampler)


class Centred(nn.Module):
    """Logits (-s, s), s by how far a row is from the mean of its batch."""

    def __init__(self, *more, scale=1.0):
        super().__init__()
        self.more, self.scale = more, scale

    def forward(self, x):
        s = 40 * (x.flatten(1).mean(1) - x.mean()).abs() - 0.05
        s[1:2] *= self.scale
        return torch.stack([-s, s, *(torch.full_like(s, value) for value in self.more)], dim=1)


@pytest.mark.parametrize("more", [(), (-1e4,), (-1e9,), (-torch.inf,), (-10.0, -1e4)])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_neither_a_mask_nor_an_outlier_hides_a_dependence(more, scale):
    with pytest.raises(ValueError, match="rows depend on one another"):
        srs.certify(Centred(*more, scale=scale).eval(), torch.rand(64), **SETTINGS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dependence_is_found_in_other_types(dtype):
    for model in (_statistics().to(dtype), Centred().eval()):
        with pytest.raises(ValueError, match="rows depend on one another"):
            srs.certify(model, torch.rand(1, 8, 8).to(dtype), **SETTINGS)


def test_a_masked_or_shifted_model_of_independent_rows_is_certified():
    image = torch.rand(8)
    plain = srs.certify(_linear(), image, **SETTINGS)
    for more in (-1e9, -1e4):
        masked = srs.certify(lambda x, m=more: torch.cat([_linear()(x), torch.full((len(x), 1), m)], 1), image, **SETTINGS)
        assert masked.n_a == plain.n_a
    assert srs.certify(lambda x: _linear()(x) + 50.0, image, **SETTINGS).n_a == pytest.approx(plain.n_a, abs=2)
    assert srs.certify(lambda x: torch.zeros(len(x), 3), image, **SETTINGS).undecided == 400


def test_a_model_may_return_a_buffer_of_its_own():
    buffer = torch.empty(400, 3)

    def model(x):
        buffer[: len(x)] = _linear()(x)
        return buffer[: len(x)]

    image = torch.rand(8)
    assert srs.certify(model, image, **SETTINGS) == srs.certify(_linear(), image, **SETTINGS)
    deq, kept = Overwriting().eval(), torch.empty(400, 8)
    step = deq.f

    def f(z, u):
        kept[: len(z)] = step(z, u)
        return kept[: len(z)]

    deq.f = f
    sampler = srs.StandardSampler(solver=Solver(method="naive", steps=20))
    assert srs.certify(deq, image, sampler=sampler, **SETTINGS) == srs.certify(
        Overwriting().eval(), image, sampler=sampler, **SETTINGS
    )


def test_what_zeros_hide_at_the_first_call_is_seen_at_the_second():
    model, x = Overwriting(), torch.randn(5, 8)

    def f(z, u):
        out = Overwriting.f(model, z, u)
        z.data.mul_(0.5)
        return out

    for stop in ("fixed", "relative"):
        found = srs.solve(f, torch.zeros(5, 8), x, Solver(steps=20, stop=stop))
        assert torch.equal(found.z, srs.solve(model.f, torch.zeros(5, 8), x, Solver(steps=20, stop=stop)).z)


def test_the_reference_that_a_certificate_is_about_is_looked_at_too():
    deq = Layers().eval()
    deq.forward = lambda x: Layers.forward(deq, x) * (1 + (x - x.mean()).std())
    once = Solver(method="naive", steps=1)
    for reference in (DirectSampler(), srs.StandardSampler(solver=once, start="learned")):
        deq.starts = {"learned": lambda u: torch.zeros_like(u) + u.mean()}
        with pytest.raises(ValueError, match="rows depend on one another"):
            srs.certify(deq, torch.rand(8), reference=reference, **SERIALIZED, **SETTINGS)
    deq.starts = [1, 2]  # another thing of that name
    assert srs.certify(deq, torch.rand(8), **SERIALIZED, **SETTINGS).n == 400


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tolerance_below_the_types_rounding_is_refused(dtype):
    sampler = srs.StandardSampler(solver=Solver(stop="relative"))
    with pytest.raises(ValueError, match="too near the rounding of the model's states.*use stop = 'fixed'"):
        srs.certify(Layers().eval().to(dtype), torch.rand(8).to(dtype), sampler=sampler, **SETTINGS)


def test_a_description_tells_solvers_apart():
    told = {Solver(**more).described() for more in ({}, {"mixing": 0.3}, {"ridge_scale": "absolute"}, {"memory": 3})}
    assert len(told) == 4
    stopped = srs.StandardSampler(solver=Solver(stop="relative"), start="learned").described()
    assert stopped == "DEQ, at most 30 Anderson steps, stopped at a relative residual of 0.001, from its learned start"


# what a model returns


class Pair(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: float = 0.0


WRAPPED = {
    "a tuple": (lambda x: (x[:, :1], _linear()(x)), 1, "output_key = 0 or 1"),
    "a list": (lambda x: [_linear()(x)], 0, "output_key = 0"),
    "a dict": (lambda x: {"logits": _linear()(x)}, "logits", "output_key = 'logits'"),
    "a Pair": (lambda x: Pair(_linear()(x), x), "logits", "output_key = 'logits' or 'features'"),
    "an Output": (lambda x: Output(_linear()(x)), "logits", "output_key = 'logits' or 'loss'"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_logits_may_be_in_something_else_that_is_named(kind):
    model, key, told = WRAPPED[kind]
    image = torch.rand(8)
    with pytest.raises(ValueError, match=f"output is {kind}, not a tensor of logits: say where the logits are, {told}$"):
        srs.certify(model, image, **SETTINGS)
    plain = srs.certify(_linear(), image, **SETTINGS)
    assert srs.certify(model, image, output_key=key, **SETTINGS) == plain
    assert srs.predict(model, image, output_key=key, **SETTINGS) == srs.predict(_linear(), image, **SETTINGS)
    for ask in (partial(srs.certify_at, r=0.1), partial(srs.certify_until, gain=0.1)):
        found, expected = (ask(m, [image], output_key=k, **SETTINGS) for m, k in ((model, key), (_linear(), None)))
        assert found == expected and "classifier" in found[0].classifier
    with pytest.raises(ValueError, match=f"output_key = 'nothing': the model's output is {kind} without it"):
        srs.certify(model, image, output_key="nothing", **SETTINGS)


OUTPUTS = {
    "averaged": (lambda x: _linear()(x).mean(0, keepdim=True), r"shape \(1, 3\) for a batch of 400"),
    "one row fewer": (lambda x: _linear()(x)[1:], r"shape \(399, 3\) for a batch of 400"),
    "one logit": (lambda x: _linear()(x)[:, :1], "1 logit a row: expected one for each of at least 2 classes"),
    "maps": (lambda x: _linear()(x)[:, :, None, None], r"shape \(400, 3, 1, 1\)"),
    "flat": (lambda x: _linear()(x)[:, 0], r"shape \(400,\)"),
    "integers": (lambda x: _linear()(x).long(), "type torch.int64: expected logits, floating"),
    "complex": (lambda x: _linear()(x).to(torch.complex64), "type torch.complex64"),
    "nothing": (lambda x: None, "is a NoneType, not a tensor of logits"),
    "an array": (lambda x: _linear()(x).detach().numpy(), "is a ndarray, not a tensor of logits"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_another_shape_are_refused_and_never_broadcast(kind):
    model, told = OUTPUTS[kind]
    with pytest.raises(ValueError, match=told):
        srs.certify(model, torch.rand(8), **SETTINGS)


def test_a_squeezed_single_row_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\) for a batch of 1"):
        srs.certify(lambda x: _linear()(x).squeeze(0), torch.rand(8), batch_size=1, **SETTINGS)
    with pytest.raises(ValueError, match=r"computes 400 together, but not 1 of them.*shape \(3,\) for a batch of 1"):
        srs.certify(lambda x: _linear()(x).squeeze(0), torch.rand(8), **SETTINGS)


def test_masked_classes_do_not_silence_the_others():
    masked = lambda x: torch.cat([_linear()(x), torch.full((len(x), 2), -torch.inf)], dim=1)  # noqa: E731
    image = torch.rand(8)
    assert srs.certify(masked, image, **SETTINGS) == srs.certify(_linear(), image, **SETTINGS)
    alone = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf], [torch.inf, 0.0], [torch.nan, 1.0]])
    assert decide(alone)[0].tolist() == [0, UNDECIDED, UNDECIDED, UNDECIDED]


def test_rows_that_are_computed_again_are_counted():
    seen = []

    def narrow(x):
        seen.append(len(x))
        return _linear(scale=1e-4)(x)

    found = srs.certify(narrow, torch.rand(8), **SETTINGS)
    assert found.evaluations == sum(seen) > 900


def test_an_error_of_the_models_own_says_where_it_came_from():
    with pytest.raises(RuntimeError) as raised:
        srs.certify(nn.Linear(7, 3).eval(), torch.rand(8), **SETTINGS)
    assert raised.value.__notes__ == ["raised by the model's forward pass, given (400, 8)"]
    tree = srs.deq.interface.CheckedDEQ(Layers())
    with pytest.raises(RuntimeError) as raised:
        tree._ask("f", lambda z: torch.zeros(2) + z["a"], {"a": torch.zeros(3)})
    assert raised.value.__notes__ == ["raised by the model's f, given (3,)"]


# which classifier is it?


class Layers(nn.Module):
    """A DEQ whose inject and head are layers, with a forward that is another classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inject, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def initial_state(self, u):
        return torch.zeros_like(u)

    def f(self, z, u):
        return torch.tanh(0.5 * z + u)

    def forward(self, x):
        return self.head(self.inject(x)).flip(1)


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch on Python 3.13.0
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")], ids=["plain", "compiled"])
def test_a_deq_of_layers_is_a_deq_and_the_certificate_says_what_it_is_about(wrap):
    found = srs.certify(wrap(Layers().eval()), torch.rand(8), **SETTINGS)
    assert found.classifier == "DEQ, 30 Anderson steps, from its initial start" in str(found)
    assert found.evaluations >= 30 * 500
    direct = srs.certify(wrap(Layers().eval()), torch.rand(8), sampler=DirectSampler(), **SETTINGS)
    assert direct.classifier == "classifier, a forward pass a vote" and direct.evaluations < 600
    (settled,) = srs.certify_at(Layers().eval(), [torch.rand(8)], 0.1, **SETTINGS)
    assert settled.classifier == found.classifier
    serialized = srs.certify(Layers().eval(), torch.rand(8), **SERIALIZED, **SETTINGS)
    assert serialized.classifier == found.classifier, "that of the audit's reference"


def test_what_is_neither_and_what_does_not_fit_its_sampler():
    with pytest.raises(ValueError, match="model = a str is neither a classifier.*nor a DEQ"):
        srs.certify("resnet", torch.rand(8), **SETTINGS)
    with pytest.raises(ValueError, match="model = a Linear is no DEQ.*lacks inject, initial_state, f, head"):
        srs.certify(nn.Linear(8, 3).eval(), torch.rand(8), sampler=srs.StandardSampler(), **SETTINGS)
    with pytest.raises(ValueError, match="sampler = 'standard' is no sampler: give srs.DirectSampler"):
        srs.certify(Layers().eval(), torch.rand(8), sampler="standard", **SETTINGS)
    with pytest.raises(ValueError, match="reference needs independent votes.*'serialized'"):
        srs.certify(Layers().eval(), torch.rand(8), reference=SERIALIZED["sampler"], **SERIALIZED, **SETTINGS)
    deq = Layers().eval()
    deq.f = lambda z, u: [z, z]
    with pytest.raises(ValueError, match=r"of the shapes .*'\[1\]'.*, where initial_state had \{'a tensor': \(6,\)\}"):
        srs.certify(deq, torch.rand(8), **SETTINGS)
    deq.initial_state = lambda u: torch.zeros(6)
    with pytest.raises(ValueError, match=r"initial_state returns a tensor of shape \(6,\).*for 400 rows"):
        srs.certify(deq, torch.rand(8), **SETTINGS)


@pytest.mark.parametrize(
    "where, told",
    [
        ("inject", r"inject returns a tensor of shape \(1, 8\).*for 400 rows"),
        ("head", r"head has the shape \(1, 3\) for a batch of 400"),
        ("start", r"start 'learned' returns a tensor of shape \(1, 8\).*for 400 rows"),
    ],
)
def test_what_a_deq_averages_is_refused_and_never_broadcast(where, told):
    model = Overwriting().eval()
    mean = lambda function: lambda *given: function(*given).mean(0, keepdim=True)  # noqa: E731
    model.starts = {"learned": mean(lambda u: u)}
    if where != "start":
        setattr(model, where, mean(getattr(model, where)))
    sampler = srs.StandardSampler(solver=Solver(steps=2), start="learned" if where == "start" else "initial")
    with pytest.raises(ValueError, match=told):
        srs.certify(model, torch.rand(8), sampler=sampler, **SETTINGS)


@pytest.mark.parametrize("more", [{}, SERIALIZED], ids=["standard", "serialized"])
def test_a_deqs_logits_may_be_under_a_key_of_its_heads_output(more):
    model, image = Overwriting().eval(), torch.full((8,), 0.6)
    model.head = lambda z: {"logits": Overwriting.head(model, z)}
    for ask in (srs.certify, srs.predict):
        plain = ask(Overwriting().eval(), image, **more, **SETTINGS)
        assert ask(model, image, output_key="logits", **more, **SETTINGS) == plain
    with pytest.raises(ValueError, match="head is a dict, not a tensor of logits: say where.*output_key = 'logits'"):
        srs.certify(model, image, **more, **SETTINGS)


# what is counted, and how exactly


class Counted(LinearDEQ):
    """Counts the rows that f is evaluated on."""

    rows, scale = 0, 1.0

    def f(self, z, u):
        self.rows += len(z)
        return super().f(z, u)

    def head(self, z):
        return self.scale * super().head(z)


TWO, TEN, BROYDEN = Solver(steps=2), Solver(steps=10), Solver(method="broyden", steps=2)
COUNTED = {
    "standard": srs.StandardSampler(solver=TEN),
    "carry": srs.SerializedSampler(solver=BROYDEN, warmup=BROYDEN, chains=20, carry="clean"),
    **{
        start: srs.SerializedSampler(solver=TWO, warmup=TEN, chains=20, start=start)
        for start in ("previous", "clean", "running_mean")
    },
}


@pytest.mark.parametrize("selection", ["votes", "clean"])
@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["wide margins", "narrow ones, computed again"])
@pytest.mark.parametrize("kind", COUNTED)
def test_every_evaluation_of_f_is_counted(kind, scale, selection):
    deq = Counted().eval()
    deq.scale = scale
    ask = {"sigma": 0.5, "n": 200, "alpha": 0.05, "audit": 150, "batch_size": 64, "selection": selection}
    assert srs.certify(deq, deq.at_true_radius(0.3), sampler=COUNTED[kind], **ask).evaluations == deq.rows


def test_votes_are_cast_in_full_precision_whatever_is_allowed_outside(linear_deq):
    seen, f = set(), linear_deq.f

    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    linear_deq.f = lambda z, u: seen.add(now()) or f(z, u)
    before = now()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        for sampler in (srs.StandardSampler(), srs.SerializedSampler(chains=20), ReleasedSampler()):
            srs.certify(linear_deq, torch.zeros(6), sigma=0.5, n=100, alpha=0.05, audit=80, sampler=sampler)
        assert seen == {("highest", False)} and now() == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    "setting, value",
    [
        ("backends", "tf32"),
        ("backends.cuda.matmul", "tf32"),
        ("backends.cudnn.conv", "ieee"),
        ("backends.cudnn.conv", "tf32"),
        ("backends.mkldnn.matmul", "bf16"),
        ("backends.mkldnn.conv", "bf16"),
    ],
)
def test_votes_are_cast_in_full_precision_by_torchs_newer_settings_too(setting, value):
    """In a process of its own: torch cannot forget which settings were used."""
    script = f"""
import threading, torch
from srs.common.machine import _FLOAT32, full_precision
torch.{setting}.fp32_precision = {value!r}
now = lambda: [kind.fp32_precision for kind in _FLOAT32]
before, entered, leave = now(), threading.Event(), threading.Event()

@full_precision()
def other():
    entered.set()
    leave.wait(30)

thread = threading.Thread(target=other)
with full_precision():
    assert len(before) >= 5 and set(now()) <= {{"none", "ieee"}}
    thread.start()
    assert entered.wait(30)
assert set(now()) <= {{"none", "ieee"}}, "the other thread is within"
leave.set()
thread.join()
assert now() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# other types and other modes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("deq", [False, True], ids=["classifier", "DEQ"])
def test_models_of_every_floating_type(dtype, deq):
    model = (Layers() if deq else nn.Linear(8, 3)).eval().to(dtype)
    model.requires_grad_(False)
    image, ask = torch.full((8,), 0.6), {"sigma": 0.1, "n": 400, "batch_size": 100}
    exact = srs.certify(copy.deepcopy(model).double(), image.double(), **ask)
    found = srs.certify(model, image.to(dtype), **ask)
    assert found.prediction == exact.prediction != srs.ABSTAIN and abs(found.n_a - exact.n_a) <= 4
    rows = torch.tensor([[1.0, 1.0 + 3 * torch.finfo(dtype).eps], [8.0, 0.0]], dtype=dtype)
    assert decide(rows)[0].tolist() == [UNDECIDED, 0]


def test_the_least_margin_fits_the_type():
    """bfloat16 has 3 digits: at 16 its next number is 0.125 away, and says nothing."""
    assert decide(torch.tensor([[16.125, 16.0]], dtype=torch.bfloat16))[0].item() == UNDECIDED
    assert decide(torch.tensor([[16.125, 16.0]]))[0].item() == 0
    assert decide(torch.tensor([[1e4 + 0.002, 1e4]]))[0].item() == UNDECIDED  # one rounding of float32
    assert decide(torch.tensor([[1e4 + 0.002, 1e4]], dtype=torch.float64))[0].item() == 0
    assert decide(torch.tensor([[1 + 2 * MARGIN, 1.0]]))[0].item() == 0


def test_autocast_is_the_models_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solved = srs.solve(Layers().f, torch.zeros(4, 6), torch.randn(4, 6), Solver(steps=20))
        found = srs.certify(Layers().eval(), torch.full((8,), 0.6), **SETTINGS)
    plain = srs.certify(Layers().eval(), torch.full((8,), 0.6), **SETTINGS)
    assert solved.z.dtype == torch.float32 and (solved.residual < 0.01).all()
    assert found.prediction == plain.prediction and abs(found.n_a - plain.n_a) <= 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_frozen_and_exported_models():
    linear, image = nn.Linear(8, 3).eval(), torch.rand(8)
    plain = srs.certify(linear, image, **SETTINGS)
    scripted = torch.jit.script(linear)
    rows = {0: torch.export.Dim("rows", min=1, max=4_096)}
    exported = torch.export.export(linear, (torch.zeros(4, 8),), dynamic_shapes=(rows,)).module()
    for model in (scripted, torch.jit.freeze(scripted), exported):
        assert srs.certify(model, image, **SETTINGS).n_a == plain.n_a
    fixed = torch.export.export(linear, (torch.zeros(400, 8),)).module()
    with pytest.raises(ValueError, match="computes 400 together, but not 3 of them"):
        srs.certify(fixed, image, **SETTINGS)


# states that are trees of tensors


def test_the_page_on_other_models_runs_and_its_torchdeq_model_is_certified_alike(capsys):
    """A torchdeq model's f under our solver, and the same function as a plain classifier, have one certificate."""
    namespace = {}
    for block in PAGE:
        exec(block, namespace)
    assert capsys.readouterr().out.count("evaluations of f") == 5
    model, image = namespace["model"], namespace["image"]
    for solver in (Solver(), Solver(method="broyden", steps=10), Solver(steps=30, stop="relative")):

        def plain(x, solver=solver):
            u = model.inject(x)
            return model.head(srs.solve(model.f, model.initial_state(u), u, solver).z)

        ours = srs.certify(model, image, sampler=srs.StandardSampler(solver=solver), **SETTINGS)
        assert _few(ours) == _few(srs.certify(plain, image, **SETTINGS)) and ours.radius > 0


def _tree(build, take):
    """Overwriting's model with its state and injection in a tree."""
    base = Overwriting()

    class Tree(nn.Module):
        def inject(self, x):
            return build(base.inject(x))

        def initial_state(self, u):
            return build(torch.zeros_like(take(u)))

        def f(self, z, u):
            return build(base.f(take(z), take(u)))

        def head(self, z):
            return base.head(take(z))

    return Tree().eval()


TREES = {
    "list": (lambda t: [t[:, :3].clone(), t[:, 3:].clone()], lambda s: torch.cat(s, dim=1)),
    "tuple": (lambda t: (t[:, :3, None].clone(), t[:, 3:].clone()), lambda s: torch.cat([s[0][..., 0], s[1]], dim=1)),
    "dict": (lambda t: {"a": t[:, 3:].clone(), "b": t[:, :3].clone()}, lambda s: torch.cat([s["b"], s["a"]], dim=1)),
    "nested, with constants": (
        lambda t: {"deep": [(t[:, :3].clone(), None), t[:, 3:].clone()], "count": 2},
        lambda s: torch.cat([s["deep"][0][0], s["deep"][1]], dim=1) if s["count"] == 2 else None,
    ),
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("start", ["standard", "previous", "clean"])
def test_a_state_may_be_a_tree_of_tensors(kind, start):
    sampler = None if start == "standard" else srs.SerializedSampler(solver=Solver(steps=2), chains=50, start=start)
    image = torch.full((8,), 0.6)
    found = srs.certify(_tree(*TREES[kind]), image, sampler=sampler, audit=200, **SETTINGS)
    assert _few(found) == _few(srs.certify(Overwriting().eval(), image, sampler=sampler, audit=200, **SETTINGS))


def test_a_dicts_tensors_are_told_by_their_keys():
    """Which f may make in another order, but not under others."""
    two = lambda t: {"a": t[:, :4].clone(), "b": t[:, 4:].clone()}  # noqa: E731
    joined = lambda s: torch.cat([s["a"], s["b"]], dim=1)  # noqa: E731
    model, image = _tree(two, joined), torch.full((8,), 0.6)
    plain = srs.certify(model, image, **SETTINGS)
    f = model.f
    model.f = lambda z, u: dict(reversed(f(z, u).items()))
    assert srs.certify(model, image, **SETTINGS) == plain
    model.f = lambda z, u: {"b": f(z, u)["b"], "c": f(z, u)["a"]}
    with pytest.raises(ValueError, match=r"f returns rows of the shapes .*'c'.*, where initial_state had .*'a'.*: keep them"):
        srs.certify(model, image, **SETTINGS)


def test_trees_that_are_none():
    cases = {
        r"initial_state returns a tensor of shape \(5, 3\)": lambda u: [torch.zeros(5, 3)],
        "tensors of the types torch.float32, torch.float64: make them one": lambda u: [
            torch.zeros(len(u), 3),
            torch.zeros(len(u), 5, dtype=torch.float64),
        ],
        "initial_state returns a list: expected a tensor": lambda u: [None, 3],
        "torch.int64": lambda u: {"z": torch.zeros(len(u), 8, dtype=torch.int64)},
        r"initial_state returns \[None, 3\] beside its tensors, where initial_state had \[None, 400\]": lambda u: [u, len(u)],
        "initial_state returns an object beside its tensors": lambda u: [u, object()],
    }
    for told, initial in cases.items():
        model = Overwriting().eval()
        model.initial_state, model.f, model.head = initial, lambda z, u: z, lambda z: z[0]
        with pytest.raises(ValueError, match=told):
            srs.certify(model, torch.rand(8), **SETTINGS)
