"""Training of DEQs, and of other classifiers, for randomized smoothing.

Gaussian augmentation (Cohen et al. 2019): noise N(0, sigma^2 I) is added to each image once, in pixel units; or SmoothAdv
(Salman et al. 2019), which attacks the smoothed classifier at every step; or several noisy copies, to be classified alike
(Jeong and Shin 2020). For a DEQ, first f is unrolled a few times (pre-training), then the gradient is implicit (Bai et al.
2019, 2020), with Jacobian regularization at random steps (Bai et al. 2021). All randomness of a step is a function of (seed,
step, process), so that a run that was killed and resumed ends with the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from srs import models
from srs.common.resume import differing, lock
from srs.common.settings import Section
from srs.data.datasets import DataConfig, Dataset, Images, augment
from srs.deq.definition import METHODS, classify, is_deq, starting_state
from srs.deq.implicit import differentiable, implicit_solve, jacobian_penalty
from srs.deq.interface import device_of
from srs.deq.solvers import Solver, residuals
from srs.models import starts
from srs.training import processes
from srs.training.pgd import Logits, ascend
from srs.votes.noise import NoisyCopies

_HELD_OUT = 1 << 63  # sets the seeds of evaluation noise apart from those of certification


class Adversary(Section):
    """SmoothAdv training with PGD (Salman et al. 2019); defaults as far as the paper's Table 5 tells them.

    From epoch ``first_epoch`` on (0: all of them) each image is moved by ``steps`` l2 steps of ``step_size`` (None:
    2 epsilon / steps) up the loss of the mean softmax over ``samples`` noisy copies, within ``epsilon``; the same copies of
    the moved image, ``batch_size`` x ``samples`` rows a step, are then trained on.
    """

    epsilon: float = Field(0.5, gt=0)
    steps: int = Field(2, ge=1)
    samples: int = Field(4, ge=1)
    first_epoch: int = Field(0, ge=0)
    step_size: float | None = Field(None, gt=0)


class Consistency(Section):
    """Consistency regularization (Jeong and Shin 2020): each image is trained on in ``samples`` noisy copies, ``batch_size`` x
    ``samples`` rows a step, and to their cross-entropy is added

        weight mean_i KL(p || p_i) + entropy H(p),    p_i the softmax of copy i, p their mean.

    Defaults as theirs for CIFAR-10 at sigma 0.5 and 1; at 0.25 their ``weight`` (lambda) is 20.
    """

    samples: int = Field(2, ge=2)
    weight: float = Field(10.0, ge=0)
    entropy: float = Field(0.5, ge=0)


class Training(Section):
    """The schedule. Defaults as released for MDEQ-SMALL on CIFAR-10 (Tables 6 and 8); what else differs: docs/released.md.

    ``schedule`` "cosine" falls to ``final_learning_rate``, step by step; "step" divides the rate by 10 after each third of the
    epochs (Cohen et al. 2019). Unrolling, solvers and Jacobian regularization mean nothing to a model that is no DEQ.
    ``jacobian_weight`` grows by ``jacobian_increase`` every 50,000 steps after the unrolled ones; while f is unrolled it is
    ``unrolled_jacobian_weight``, where one is given (0 in the released configuration, whose others are the defaults here).
    The regularization's estimate is the mean over ``jacobian_vectors``. ``start``: where f and the solvers start, the DEQ's
    initial state or one of its amortized starts; while f is unrolled, that is trained, too.

    ``precision`` "bfloat16": inject, f and head are computed as torch.autocast has it, in steps of training alone; weights,
    states, solvers, losses and the evaluation on held-out images stay float32.

    ``processes``: how many share a batch, each on a GPU of its own, or all on the processor. No setting of the machine, for it
    changes the result: BatchNorm knows a process's share of the batch alone, each has random numbers of its own, and sums have
    another order. Gradients and running statistics are means over the processes.
    """

    sigma: float = Field(0.5, ge=0)
    epochs: int = Field(120, ge=1)
    batch_size: int = Field(96, ge=2)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "step"] = "cosine"
    final_learning_rate: float = Field(1e-6, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    unrolled_steps: int = Field(16_000, ge=0)
    unrolled_layers: int = Field(8, ge=1)
    forward: Solver = Solver(method="broyden", steps=8, stop="relative")
    backward: Solver = Solver(method="broyden", steps=7, stop="relative")
    jacobian_weight: float = Field(0.5, ge=0)
    unrolled_jacobian_weight: float | None = Field(None, ge=0)
    jacobian_increase: float = Field(0.0, ge=0)
    jacobian_frequency: float = Field(0.05, ge=0, le=1)
    jacobian_epochs: int = Field(90, ge=0)
    jacobian_vectors: int = Field(2, ge=1)
    adversary: Adversary | None = None
    consistency: Consistency | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluation: Solver = Solver(method="anderson", steps=30)
    start: Literal["initial", "mean", "learned"] = "initial"
    evaluate_every: int = Field(10, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    processes: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "Training":
        if self.batch_size % self.processes or self.batch_size < 2 * self.processes:
            raise ValueError(
                f"processes = {self.processes} must divide batch_size = {self.batch_size} into shares of 2 images or more"
            )
        if self.adversary is not None and self.consistency is not None:
            raise ValueError("adversary and consistency exclude one another: each has noisy copies of its own")
        return self


def train(
    preset: str,
    overrides: dict,
    data: Dataset,
    augmentation: DataConfig,
    config: Training,
    checkpoint: str | Path,
    device: torch.device | str = "cpu",
    base: nn.Module | None = None,
    checkpoint_seconds: float = 20.0,
) -> dict:
    """Train a model, or go on with ``base``, which was one; returns ``{"model": models.state(...), "history": [...],
    "seconds": float}``, and with amortized starts ``"starts"``, their state.

    The run state is kept in ``checkpoint`` (replaced atomically, every ``checkpoint_seconds``) and resumed from it where it
    exists and is of the same training. ``history`` has a
    row for each epoch: mean loss and noisy accuracy on the training batches, solver residual, lost (non-finite) rows,
    and every ``evaluate_every`` epochs noisy accuracy and residual of the ``evaluation`` solver on held-out images. A model
    that is no DEQ has residuals NaN.

    Raises ValueError for a checkpoint of another training and a ``base`` that was folded, FloatingPointError when no row of a
    batch has a finite state. A step whose lost rows leave no finite gradient changes no weight. Several processes raise what
    :func:`srs.training.processes.launch` does, and a script needs ``if __name__ == "__main__"``.
    """
    checkpoint, device = Path(checkpoint), torch.device(device)
    given = preset, overrides, data, augmentation, config, checkpoint, checkpoint_seconds
    saved = None if base is None else _saved(base)  # now: a folded one is refused before any work
    with lock(checkpoint), torch.random.fork_rng():
        if config.processes > 1:
            processes.launch(config.processes, device, _share, saved, *given)
        run = _finish(0, device, base, *given)  # after others, nothing is left to do but to read what they have saved
    return _saved(run.model) | {"history": run.history, "seconds": run.seconds}


def _saved(model: nn.Module) -> dict:
    """A model, and its amortized starts, as plain data and tensors: normalized weights cannot be sent to another process."""
    saved = {"model": models.state(model)}
    return saved | ({"starts": starts.state(model.starts)} if hasattr(model, "starts") else {})


def _share(rank: int, device: torch.device, base: dict | None, *given) -> None:
    """What one of several processes does."""
    model = None
    if base is not None:
        model = models.restore(base["model"])
        if "starts" in base:
            model.starts = starts.restore(base["starts"], model)
    _finish(rank, device, model, *given)


def _finish(rank, device, base, preset, overrides, data, augmentation, config, checkpoint, checkpoint_seconds) -> "_Run":
    """The run, from where its checkpoint left it to its end."""
    torch.manual_seed(config.seed)
    model = (base or models.build(preset, **{**data.model_fields(), **overrides})).to(device)
    run = _Run(model, data, augmentation, config, checkpoint, device, checkpoint_seconds, rank)
    run.asked |= json.loads(json.dumps({"preset": preset, "overrides": overrides}))  # as a checkpoint has it: no tuples
    run.resume()
    run.finish()
    return run


_KEPT = "step", "seconds", "history", "sums"  # in a checkpoint, beside states and what was asked for


class _Run:
    """A training run: what a checkpoint holds, and the loop over its steps. ``rank``: which process of several this is; the
    first alone saves, and measures on held-out images."""

    def __init__(self, model, data, augmentation, config, checkpoint, device, checkpoint_seconds=20.0, rank=0):
        self.model, self.data, self.augmentation = model, data, augmentation
        self.config, self.checkpoint, self.device = config, checkpoint, device
        self.checkpoint_seconds, self.rank = checkpoint_seconds, rank
        self.network = model if config.precision == "float32" else _in_bfloat16(model, device.type)  # what steps compute
        self.steps_per_epoch = max(1, len(data.train) // config.batch_size)
        self.total = config.epochs * self.steps_per_epoch
        self.optimizer = _optimizer(model, config)
        self.schedule = _schedule(self.optimizer, config, self.steps_per_epoch)
        self.step, self.seconds, self.lost = 0, 0.0, 0  # lost: rows of the last step
        self.asked = config.model_dump(mode="json") | {"images": len(data.train)}
        self.asked |= {"crop_padding": augmentation.crop_padding, "flip": augmentation.flip}
        self.history: list[dict] = []
        self.sums: dict[str, float] = {}

    def resume(self) -> None:
        if not self.checkpoint.is_file():
            return
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)  # Adam's counters stay on the host
        if others := differing(saved.get("asked", {}), self.asked):
            raise ValueError(
                f"checkpoint = {str(self.checkpoint)!r} is of another training: {others}. Name another file, or remove it"
            )
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(saved[name])
        for name in _KEPT:
            setattr(self, name, saved[name])

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        models.write_checkpoint(
            {**state, "asked": self.asked, **{name: getattr(self, name) for name in _KEPT}},
            self.checkpoint,
        )

    def finish(self) -> None:
        began = saved = time.monotonic()
        before = self.seconds
        with tqdm(total=self.total, initial=self.step, desc="train", unit="step", mininterval=2, disable=self.rank > 0) as bar:
            while self.step < self.total:
                self._one_step()
                bar.update()
                self.seconds = before + time.monotonic() - began
                due = time.monotonic() - saved > self.checkpoint_seconds or self.step == self.total
                if due and self.rank == 0:
                    self.save()
                    saved = time.monotonic()
                if self.history:
                    bar.set_postfix(loss=self.history[-1]["loss"], accuracy=self.history[-1]["accuracy"], refresh=False)

    def _one_step(self) -> None:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        size = self.config.batch_size
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.data.train))
        indices = np.array_split(order[position * size : (position + 1) * size], self.config.processes)[self.rank]
        stream = [self.config.seed, self.step, *([self.rank] if self.rank else [])]
        torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]))
        x = augment(self.data.train.images(indices).to(self.device), self.augmentation.crop_padding, self.augmentation.flip)
        labels = torch.from_numpy(self.data.train.labels[indices]).to(self.device)
        x, labels = self._noisy(x, labels, epoch)

        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, measured = self._loss(x, labels, epoch)
        loss.backward()
        if self.config.processes > 1:
            measured = self._averaged(measured)
        if self.lost and not self._has_finite_gradients():  # a lost row's gradient is 0, and may be 0 times infinity
            self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        for name, value in zip(("loss", "accuracy", "residual", "lost"), measured.tolist()):  # last: a GPU is waited for
            self.sums[name] = self.sums.get(name, 0.0) + value
        if position == self.steps_per_epoch - 1:
            self._end_epoch(epoch)

    def _has_finite_gradients(self) -> bool:
        given = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in given)

    def _averaged(self, measured: Tensor) -> Tensor:
        """Makes gradients and running statistics the processes' means; returns those of ``measured``, of lost rows the sum."""
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        tensors = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        tensors += [statistics for norm in norms for statistics in (norm.running_mean, norm.running_var)]
        processes.average([*tensors, measured])
        measured = measured * measured.new_tensor([1, 1, 1, self.config.processes])
        self.lost = int(measured[3])
        return measured

    def _noisy(self, x: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """What is trained on: one noisy copy of each image, or several, also of each attacked image."""
        config, adversary = self.config, self.config.adversary
        if adversary is not None and epoch < adversary.first_epoch:
            adversary = None
        copies = adversary or config.consistency
        if copies is None:
            return x + config.sigma * torch.randn_like(x), labels
        noise = config.sigma * torch.randn(len(x), copies.samples, *x.shape[1:], device=x.device)
        if adversary is not None:
            x = self._attacked(x, labels, noise, adversary)
        return (x[:, None] + noise).flatten(0, 1), labels.repeat_interleave(copies.samples)

    def _attacked(self, x: Tensor, labels: Tensor, noise: Tensor, adversary: Adversary) -> Tensor:
        step_size = adversary.step_size or 2 * adversary.epsilon / adversary.steps
        # evaluation mode: the classifier that will be certified is attacked, and its running statistics stay those of
        # batches that were trained on
        self.model.eval()
        epsilon = x.new_full((len(x),), adversary.epsilon)
        return ascend(self._logits(), x, labels, noise, epsilon, adversary.steps, step_size)

    def _logits(self) -> Logits:
        """The map from images to logits, differentiated as this step's loss is."""
        network, config = self.network, self.config
        if not is_deq(network):
            return network
        if not self._unrolls():
            return differentiable(network, config.forward, config.backward, config.start)

        def unrolled(x: Tensor) -> Tensor:
            injection = network.inject(x)
            return network.head(self._unroll(starting_state(network, injection, config.start), injection)[0])

        return unrolled

    def _unrolls(self) -> bool:
        return is_deq(self.model) and self.step < self.config.unrolled_steps

    def _unroll(self, z: Tensor, injection: Tensor) -> tuple[Tensor, Tensor]:
        """The state after the unrolled layers, and the state before the last."""
        for _ in range(self.config.unrolled_layers):
            z_in, z = z, self.network.f(z, injection)
        return z, z_in

    def _loss(self, x: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The loss that is differentiated; and what is told of the step, (4,): the mean loss and accuracy of rows that
        are not lost, the mean residual, the number of lost rows."""
        if is_deq(self.model):
            with self.model.weights_once():
                logits, finite, residual, penalty = self._equilibrium(x, epoch)
        else:
            logits = self.network(x)
            finite, residual, penalty = logits.isfinite().all(dim=1), x.new_full((), math.nan), x.new_zeros(())
        self.lost = lost = int((~finite).sum())
        if lost == len(finite):
            raise FloatingPointError(
                f"no finite state in the batch of step {self.step}: lower learning_rate = {self.config.learning_rate} "
                f"or, for a DEQ, raise jacobian_weight = {self.config.jacobian_weight}"
            )
        kept = finite if lost else slice(None)
        loss = F.cross_entropy(logits[kept], labels[kept])
        accuracy = (logits.argmax(dim=1) == labels)[kept].float().mean()
        told = (loss.detach(), accuracy, residual, residual.new_full((), lost))
        total = loss + self._jacobian_weight() * penalty
        if self.config.consistency is not None:
            total = total + _inconsistency(logits, finite, self.config.consistency)
        return total, torch.stack(told)

    def _jacobian_weight(self) -> float:
        config = self.config
        if self._unrolls() and config.unrolled_jacobian_weight is not None:
            return config.unrolled_jacobian_weight
        return config.jacobian_weight + config.jacobian_increase * max(0, (self.step - config.unrolled_steps) // 50_000)

    def _equilibrium(self, x: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A DEQ's logits (B, classes), which rows are finite (B,), mean residual, Jacobian penalty."""
        network, config = self.network, self.config
        self.model.draw_dropout()
        injection = network.inject(x)
        z0 = starting_state(network, injection, config.start)
        penalty = injection.new_zeros(())
        regularize = epoch < config.jacobian_epochs and self._drawn() < config.jacobian_frequency
        if self._unrolls():
            z, z_in = self._unroll(z0, injection)
            finite = z.detach().isfinite().all(dim=1)
            residual = ((z - z_in).detach().norm(dim=1) / z.detach().norm(dim=1)).nanmean()
            z = torch.where(finite[:, None], z, z0)  # a lost row must not reach the head's batch statistics
            if regularize:
                z_in = z.detach().requires_grad_()
                penalty = jacobian_penalty(network.f(z_in, injection), z_in, config.jacobian_vectors)
        else:
            compact = getattr(self.model.config, "dropout", 0) == 0  # a mask is of the whole batch
            z, fz, z_in, solution = implicit_solve(network.f, z0, injection, config.forward, config.backward, compact)
            finite, residual = solution.finite, solution.residual.nanmean()
            if regularize:
                penalty = jacobian_penalty(fz, z_in, config.jacobian_vectors)
        return network.head(z), finite, residual, penalty

    def _drawn(self) -> float:
        """A random number from 0 to 1, the same in all processes: none should wait for what another alone has to do."""
        drawn = torch.rand(()).item()
        return drawn if self.config.processes == 1 else processes.of_first(drawn, self.device)

    def _end_epoch(self, epoch: int) -> None:
        unrolled = is_deq(self.model) and self.step <= self.config.unrolled_steps
        row = {"epoch": epoch + 1, "step": self.step, "unrolled": unrolled}
        row |= {name: value / self.steps_per_epoch for name, value in self.sums.items()}
        if self.rank == 0 and ((epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == self.config.epochs):
            row |= evaluate(self.model, self.data.validation, self.config)
        self.history.append(row)
        self.sums = {}


def _in_bfloat16(model: nn.Module, kind: str) -> SimpleNamespace | Logits:
    """What ``model`` computes, a DEQ's methods or a network's logits, as torch.autocast has it on devices of this ``kind``: on
    within a call alone, its results float32, so that solvers and losses, which lie between calls, are, too."""

    def cast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def computed(*inputs: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16):
                return function(*inputs).float()

        return computed

    if not is_deq(model):
        return cast(model)
    return SimpleNamespace(**{name: cast(getattr(model, name)) for name in METHODS}, starts=getattr(model, "starts", {}))


def _inconsistency(logits: Tensor, finite: Tensor, config: Consistency) -> Tensor:
    """:class:`Consistency`'s term for logits (images x samples, classes): the mean over images whose copies are ``finite``."""
    logs = logits.log_softmax(dim=1).view(-1, config.samples, logits.shape[1])
    mean = logs.logsumexp(dim=1) - math.log(config.samples)
    divergence = (mean.exp() * (mean - logs.mean(dim=1))).sum(dim=1)
    entropy = -(mean.exp() * mean).sum(dim=1)
    kept = finite.view(-1, config.samples).all(dim=1)
    return (config.weight * divergence + config.entropy * entropy)[kept].sum() / kept.sum().clamp_min(1)


def evaluate(model: nn.Module, part: Images, config: Training) -> dict[str, float]:
    """Noisy accuracy (one copy of each image; a lost row counts as wrong) and mean relative residual of the evaluation solver
    on ``part``, over the rows that have one: NaN where none has, as of a model that is no DEQ.
    """
    model.eval()
    correct, found = 0.0, []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(part)), max(1, len(part) // 250)):
            x = part.images(rows)
            copies = [NoisyCopies(image, int(i), config.sigma, _HELD_OUT + config.seed) for i, image in zip(rows, x)]
            x = torch.cat([one(np.array([0])) for one in copies]).to(device_of(model, x))
            if is_deq(model):
                logits, solution = classify(model, x, config.evaluation, config.start)
                found.append(residuals(model.f, solution.z, model.inject(x)).double().cpu())
            else:
                logits = model(x)
            right = logits.argmax(dim=1).cpu().numpy() == part.labels[rows]
            correct += (right & logits.isfinite().all(dim=1).cpu().numpy()).sum()  # of a lost row argmax says class 0
    residual = float(torch.cat(found).nanmean()) if found else math.nan
    return {"validation_accuracy": float(correct / len(part)), "validation_residual": residual}


def _optimizer(model: nn.Module, config: Training) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def _schedule(optimizer: torch.optim.Optimizer, config: Training, steps_per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate, step by step."""
    if config.schedule == "cosine":
        total = config.epochs * steps_per_epoch
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, config.final_learning_rate)
    thirds = [math.ceil(config.epochs * k / 3) * steps_per_epoch for k in (1, 2)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, thirds, gamma=0.1)
