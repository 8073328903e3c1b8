"""A device that is none: PyTorch's PrivateUse1 with a back end in Python, whose tensors lie in the CPU's memory, where they are
computed. It refuses what a GPU refuses (tensors of several devices in one operation, ``.numpy()``), and counts what the host
of a GPU would wait for. Importing this module registers the device, which PyTorch wants before a process's first backward pass.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
_aten = torch.ops.aten
_INDEXING = {_aten.index, _aten._unsafe_index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
#: Their results are values, or of sizes, that the host must know before it goes on.
_WAITING = {_aten._local_scalar_dense, _aten.item, _aten.is_nonzero, _aten.equal, _aten.nonzero, _aten.masked_select}
_WAITING |= {_aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.bincount, _aten.repeat_interleave}
_WAITING |= {_aten._linalg_check_errors, _aten._linalg_eigh, _aten._linalg_svd, _aten.linalg_eig}
_MADE_HERE = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m")

_events: Counter[str] = Counter()
_library = torch.library.Library("aten", "IMPL")  # a library that is collected takes its kernels along


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Counts what happens within: transfers "to device" and "to host", and how often the host must "wait" besides."""
    before, found = _events.copy(), Counter()
    yield found
    found.update(_events - before)


class PretendTensor(Tensor):
    """A tensor on the device; ``lies_in`` is the one in the CPU's memory."""

    lies_in: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, lies_in: Tensor):
        layout = {"strides": lies_in.stride(), "storage_offset": lies_in.storage_offset(), "dtype": lies_in.dtype}
        made = Tensor._make_wrapper_subclass(cls, lies_in.shape, **layout, device=f"{NAME}:0")
        made.lies_in = lies_in
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: "PretendTensor") -> None:  # as module.double() does it
        Tensor.data.__set__(self, other)
        self.lies_in = other.lies_in

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self, **_) -> str:
        return f"{self.lies_in!r} on {NAME}"

    def __reduce_ex__(self, protocol):
        given = (self.detach().cpu(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, given  # as of any device without storages


def _computed(func, args: tuple, kwargs: dict) -> object:
    """What ``func`` makes of its arguments, computed where those lie. Raises RuntimeError for tensors of several devices."""
    tensors: list[Tensor] = []

    def inner(x: Tensor) -> Tensor:
        tensors.append(x)
        return x.lies_in if isinstance(x, PretendTensor) else x

    given, named = _mapped(inner, args), _mapped(inner, kwargs)
    place = _place(func, args, kwargs, tensors)
    if "device" in named:
        named["device"] = "cpu"
    found = func(*given, **named)
    mine = [x for x in tensors if isinstance(x, PretendTensor)]
    if any(x.shape != x.lies_in.shape or x.stride() != x.lies_in.stride() for x in mine):
        raise NotImplementedError(f"{func} gives a tensor on {NAME} another layout")
    if place != NAME:
        return found
    written = {id(x.lies_in): x for x in mine}
    return _mapped(lambda x: written[id(x)] if id(x) in written else PretendTensor(x), found)


def _place(func, args: tuple, kwargs: dict, tensors: list[Tensor]) -> str:
    """Where the result of ``func`` lies. Counts what the host waits for; raises as :func:`_computed`."""
    packet, place = func.overloadpacket, torch.device(kwargs.get("device") or NAME).type
    if packet is _aten.copy_:
        place, source = (x.device.type for x in tensors)
        _count_transfer(source, place)
        return place
    if packet is _aten._to_copy:
        _count_transfer(NAME, place)
        return place
    indices = [x for x in args[1] if x is not None] if packet in _INDEXING and isinstance(args[0], PretendTensor) else []
    for x in tensors:
        if x.is_cpu and x.ndim:  # a number may come along
            if not any(x is index for index in indices):
                raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some of {NAME} and the CPU")
            _events["to device"] += 1
    _events["wait"] += packet in _WAITING or any(index.dtype == torch.bool for index in indices)
    return place


def _count_transfer(source: str, target: str) -> None:
    if source != target:
        _events["to device" if target == NAME else "to host"] += 1


def _mapped(function: Callable[[Tensor], Tensor], tree: object) -> object:
    """``tree`` with ``function`` of each of its tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple | list):
        return type(tree)([_mapped(function, branch) for branch in tree])
    if isinstance(tree, dict):
        return {name: _mapped(function, branch) for name, branch in tree.items()}
    return tree


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What torch.tensor(..., device=...) copies with, past ``__torch_dispatch__``."""
    _count_transfer(source.device.type, target.device.type)
    source, inner = (x.lies_in if isinstance(x, PretendTensor) else x for x in (source, target))
    inner.copy_(source)
    return target


class _Module(_DummyBackendModule):
    """``torch.pretend``: random numbers are the CPU's."""

    def get_rng_state(self, device=None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device=None) -> None:
        torch.set_rng_state(state)


def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME, _Module())
    _library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in _MADE_HERE:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(_aten, packet), overload or "default")
        _library.impl(name, lambda *args, func=func, **kwargs: _computed(func, args, kwargs), "PrivateUse1")


_register()
