"""What a model is to this library: any classifier of batches, or any DEQ, looked at on its way in.

Models are the user's own code, and a certificate is only as true as what they do: they may write into what they are given,
return logits in a dictionary, keep their state in a list of tensors, or mix up the rows of a batch. :func:`checked` makes one
of two things of them, with flat states and plain logits, that refuse the rest by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from srs.deq.definition import METHODS, is_deq, require_evaluation_mode
from srs.deq.solvers import Unspoiled

LOOKED_AT = 3  # rows of a certificate whose independence is looked at


class Checked:
    """A model as the samplers see it; ``rows_checked``: whether :func:`require_independent_rows` has nothing left to do."""

    def __init__(self, model, output_key=None, rows_checked: bool = True):
        self.model, self.output_key, self.rows_checked = model, output_key, rows_checked

    @property
    def rows_at_once(self) -> int | None:
        return getattr(self.model, "rows_at_once", None)

    def _ask(self, what: str, function: Callable, *tensors) -> object:
        """What ``function`` makes of ``tensors``; an error of its own says where it came from."""
        try:
            return function(*tensors)
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in pytree.tree_leaves(tensors) if isinstance(x, Tensor))
            error.add_note(f"raised by the model's {what}, given {shapes}")
            raise

    def _logits(self, what: str, out: object, rows: int) -> Tensor:
        return logits_of(out, rows, self.output_key, what)


class CheckedClassifier(Checked):
    """Any map from a batch of images to logits."""

    def logits(self, x: Tensor) -> Tensor:
        """Images (B, ...), which the model may overwrite -> logits (B, C). Raises ValueError as :func:`logits_of` does."""
        return self._logits("output", self._ask("forward pass", self.model, x), len(x))


class CheckedDEQ(Checked):
    """A DEQ (:class:`srs.deq.definition.DEQ`) whose injection and state are one tensor each, whatever trees of tensors the
    model keeps them in. ``starts`` are the model's amortized ones, if it has any. The model's methods may overwrite what they
    are given: what is used again is kept from them."""

    def __init__(self, model, output_key=None, rows_checked: bool = True):
        super().__init__(model, output_key, rows_checked)
        self._injections, self._states = _Layout("inject"), _Layout("initial_state")
        self.initial_state = Unspoiled(self._initial_state, "initial_state")
        self.f, self.head = Unspoiled(self._f), Unspoiled(self._head, "head")
        fitted = getattr(model, "starts", None)
        fitted = fitted if isinstance(fitted, Mapping | nn.ModuleDict) else {}
        self.starts = {name: Unspoiled(partial(self._start, name, start), name) for name, start in fitted.items()}
        self.proved_margin = self._proved_margin if callable(getattr(model, "proved_margin", None)) else None

    def inject(self, x: Tensor) -> Tensor:
        """Images (B, ...), which the model may overwrite -> injection (B, ...)."""
        return self._injections.pack(self._ask("inject", self.model.inject, x), len(x))

    def _head(self, z: Tensor) -> Tensor:
        return self._logits("head", self._ask("head", self.model.head, self._states.unpack(z)), len(z))

    def _initial_state(self, injection: Tensor) -> Tensor:
        given = self._injections.unpack(injection)
        return self._states.pack(self._ask("initial_state", self.model.initial_state, given), len(injection))

    def _start(self, name: str, start: Callable[[Tensor], Tensor], injection: Tensor) -> Tensor:
        if not self._states.known:
            self.initial_state(injection)
        return _rows_of(self._ask(f"start {name!r}", start, injection), len(injection), f"start {name!r}")

    def _f(self, z: Tensor, injection: Tensor) -> Tensor:
        given = self._states.unpack(z), self._injections.unpack(injection)
        return self._states.pack(self._ask("f", self.model.f, *given), len(z), "f")

    def _proved_margin(self, z: Tensor, fz: Tensor, injection: Tensor, eps: float) -> Tensor:
        given = self._states.unpack(z), self._states.unpack(fz), self._injections.unpack(injection), eps
        return self._ask("proved_margin", self.model.proved_margin, *given)


class _Layout:
    """How a tree of tensors (B, ...) becomes one tensor (B, D), and back; a plain tensor is left as it is.

    The first tree that is packed sets the layout: later ones have tensors in the same places, whatever order a dict of them
    was made in. What is no tensor (None, a number, a text) is a constant.
    """

    def __init__(self, made_by: str):
        self.made_by, self.known = made_by, False

    def pack(self, tree: object, rows: int, made_by: str = "") -> Tensor:
        """Raises ValueError for what is no tree of floating tensors of one type with ``rows`` rows, or is not as the first."""
        made_by = made_by or self.made_by
        found = {"a tensor": tree} if isinstance(tree, Tensor) else _by_place(tree)
        if self.known and found.keys() == set(self.places):
            found = {place: found[place] for place in self.places}
        places, leaves = list(found), list(found.values())
        tensors = [_rows_of(leaf, rows, made_by) for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors:
            raise ValueError(f"{made_by} returns {_named(tree)}: expected a tensor, or tuples, lists and dicts of tensors")
        if len(types := {str(tensor.dtype) for tensor in tensors}) > 1:
            raise ValueError(f"{made_by} returns tensors of the types {', '.join(sorted(types))}: make them one type")
        shapes = [tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in leaves]
        constants = [_constant(leaf, made_by) for leaf in leaves]
        if not self.known:
            self.known, self.plain, self.spec = True, isinstance(tree, Tensor), pytree.tree_structure(tree)
            self.places, self.shapes, self.constants = places, shapes, constants
        elif (places, shapes) != (self.places, self.shapes):
            here, there = (dict(zip(*pair)) for pair in ((places, shapes), (self.places, self.shapes)))
            raise ValueError(f"{made_by} returns rows of the shapes {here}, where {self.made_by} had {there}: keep them")
        elif constants != self.constants:
            raise ValueError(f"{made_by} returns {constants} beside its tensors, where {self.made_by} had {self.constants}")
        return tree if self.plain else torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

    def unpack(self, flat: Tensor) -> object:
        """The tree again, of views."""
        if not self.known or self.plain:
            return flat
        parts = iter(flat.split([math.prod(shape) for shape in self.shapes if shape is not None], dim=1))
        leaves = [
            constant if shape is None else next(parts).view(len(flat), *shape)
            for shape, constant in zip(self.shapes, self.constants)
        ]
        return pytree.tree_unflatten(leaves, self.spec)


def _by_place(tree: object) -> dict[str, object]:
    """The leaves of a tree, by the keys and numbers that lead to them."""
    return {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(tree)[0]}


def checked(model, output_key=None, rows_checked: bool = True, deq: bool | None = None) -> Checked:
    """``model`` as samplers see it: a :class:`CheckedDEQ`, or a :class:`CheckedClassifier` (``deq``: which of the two; None: a
    DEQ where it has the methods of one). ``output_key``: where its logits are, if it returns more than those.

    Raises ValueError for what is neither, or not what is asked for, and for a model in training mode.
    """
    if isinstance(model, Checked):
        if deq in (None, isinstance(model, CheckedDEQ)):
            return model
        model, output_key, rows_checked = model.model, model.output_key, False  # what was seen of the other is not of this one
    require_evaluation_mode(model)
    if deq or (deq is None and is_deq(model)):
        if missing := [name for name in METHODS if not callable(getattr(model, name, None))]:
            raise ValueError(f"model = {_named(model)} is no DEQ, as this sampler needs one: it lacks {', '.join(missing)}")
        return CheckedDEQ(model, output_key, rows_checked)
    if not callable(model):
        raise ValueError(
            f"model = {_named(model)} is neither a classifier, which can be called with a batch of images, nor a DEQ, which "
            f"has {', '.join(METHODS)}"
        )
    return CheckedClassifier(model, output_key, rows_checked)


def device_of(model, image: Tensor) -> torch.device:
    """Where the model computes: where its first parameter or buffer is; where it has none, the image's device."""
    model = model.model if isinstance(model, Checked) else model
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else image.device


def require_image(image: object, told: str = "image") -> None:
    """Raises ValueError, with the name ``told``, for what is no tensor of finite floats."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
        got = f"{kind} of {image.dtype}" if hasattr(image, "dtype") else kind
        raise ValueError(f"{told} must be a tensor of floats, pixels in [0, 1]; got {got}")
    if str(image.layout) != "torch.strided" or image.is_nested or image.is_meta:
        kind = "nested" if image.is_nested else "without data" if image.is_meta else str(image.layout)
        raise ValueError(f"{told} must be a dense tensor; got one that is {kind}")
    if not image.numel():
        raise ValueError(f"{told} has the shape {tuple(image.shape)}: there is nothing to certify")
    if not image.isfinite().all():
        raise ValueError(f"{told} has values that are not finite")


def logits_of(out: object, rows: int, key=None, what: str = "output") -> Tensor:
    """The logits (``rows``, C), C >= 2, in what a model returned, under ``key`` where that is a tuple, dict or dataclass.

    Raises ValueError that says what there is instead.
    """
    if key is not None:
        out = _under(out, key, what)
    if not isinstance(out, Tensor):
        raise ValueError(f"the model's {what} is {_named(out)}, not a tensor of logits: {_how_to_name_it(out)}")
    if not out.is_floating_point():
        raise ValueError(f"the model's {what} has the type {out.dtype}: expected logits, floating")
    if out.ndim != 2 or len(out) != rows:
        raise ValueError(
            f"the model's {what} has the shape {tuple(out.shape)} for a batch of {rows}: expected one vector of logits a row, "
            f"({rows}, classes)"
        )
    if out.shape[1] < 2:
        raise ValueError(
            f"the model's {what} has {out.shape[1]} logit a row: expected one for each of at least 2 classes; of a single "
            "logit s for the second class make torch.cat([-s, s], dim=1) / 2"
        )
    return out.clone()  # which may be a buffer that the model uses again


def require_independent_rows(
    logits: Tensor,
    least: Tensor,
    usable: np.ndarray,
    company: np.ndarray,
    again: Callable[[np.ndarray], tuple[Tensor, int]],
) -> int:
    """Whether the rows of a batch do not depend on one another, as far as a few of them show.

    ``logits`` (B, C) of a batch, and how far apart they must be for a vote, ``least`` (B,); ``again(rows)`` computes those of
    some rows anew, from their images on, and says how many evaluations of f that took. Up to three of the rows ``usable`` are
    computed in another order, behind the ``company`` of further rows, if any; the same once more; and one alone. Returns the
    evaluations spent. Detection, not proof.

    Differences that cannot change a vote are rounding, and so are those that a deep solve makes of it: a thousandth of the
    median gap between the two largest logits, in types that are fine enough to tell.

    Raises ValueError that names the finding.
    """
    picked = usable[np.unique(np.linspace(0, len(usable) - 1, LOOKED_AT).astype(int))[::-1]]
    rows, some = np.concatenate([company, picked]), slice(len(company), None)
    cast, least = logits[torch.from_numpy(picked).to(logits.device)], least[torch.from_numpy(picked).to(least.device)]
    others, spent = _of_few(again, rows, len(logits))
    repeated, more = _of_few(again, rows, len(logits))
    alone, most = _of_few(again, picked[-1:], len(logits))
    finding = _differing(repeated[some], others[some], least, logits)
    if finding:
        raise ValueError(f"the model gives other logits when it is asked twice{finding}: is a part of it random?")
    finding = _differing(others[some], cast, least, logits) or _differing(alone, others[-1:], least[-1:], logits)
    if finding:
        raise ValueError(
            f"the model's rows depend on one another{finding}: in other company, another order or alone they have other "
            "logits, so that votes are not independent. Is there a statistic of the batch (BatchNorm without running "
            "statistics, scaling by the batch), or a part in training mode?"
        )
    return int(spent + more + most)


def _differing(found: Tensor, before: Tensor, least: Tensor, logits: Tensor) -> str:
    """By how much logits of the same rows differ, in brackets; nothing where they do not."""
    eps, coarse = torch.finfo(logits.dtype).eps, logits.element_size() < 4
    found, before, least = found.cpu().double(), before.cpu().double(), least.cpu().double()[:, None]
    top = logits.float().topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).nan_to_num(0.0, 0.0, 0.0).median())
    size = before.nan_to_num(0.0, 0.0, 0.0).abs()
    tolerance = least + 8 * eps * size if coarse else least / 2 + 64 * eps * size + 3 * eps**0.5 * gap
    apart = (found - before).abs()
    apart = torch.where(found.isfinite() | before.isfinite(), apart, 0.0)  # what is lost in both is alike
    beyond = ~(apart <= tolerance)
    return f" (logits differ by {float(apart[beyond].max()):.3g})" if beyond.any() else ""


def _of_few(again: Callable, rows: np.ndarray, together: int) -> tuple[Tensor, int]:
    try:
        return again(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the model's rows depend on one another: it computes {together} together, but not {len(rows)} of them ({error})"
        ) from error


def _constant(leaf: object, made_by: str) -> object:
    if isinstance(leaf, Tensor):
        return None
    if leaf is not None and not isinstance(leaf, bool | int | float | str):
        raise ValueError(
            f"{made_by} returns {_named(leaf)} beside its tensors: expected None, numbers or texts, always the same"
        )
    return leaf


def _rows_of(tensor: Tensor, rows: int, made_by: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.ndim == 0 or len(tensor) != rows:
        raise ValueError(
            f"{made_by} returns a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}, for {rows} rows: expected floats, "
            f"({rows}, ...)"
        )
    return tensor


def _named(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _under(out: object, key, what: str) -> object:
    try:
        return getattr(out, key) if isinstance(key, str) and not isinstance(out, Mapping) else out[key]
    except Exception:  # whatever the output's own lookup raises
        raise ValueError(
            f"output_key = {key!r}: the model's {what} is {_named(out)} without it; {_how_to_name_it(out)}"
        ) from None


def _how_to_name_it(out: object) -> str:
    """Which ``output_key`` there are."""
    if isinstance(out, Mapping):
        keys = list(out)
    elif hasattr(out, "_fields"):
        keys = list(out._fields)
    elif is_dataclass(out):
        keys = list(vars(out))
    elif isinstance(out, Sequence) and not isinstance(out, str):
        keys = list(range(len(out)))
    else:
        return "return a tensor (batch, classes)"
    return f"say where the logits are, output_key = {' or '.join(map(repr, keys))}"
