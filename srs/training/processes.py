"""Several processes of one machine that train one network, each with a device of its own.

torchrun's launcher starts them, and starts them anew when one dies. They average gradients themselves, once a step:
DistributedDataParallel would do so while it differentiates one call of ``forward``, but here f, injection and head are called
apart, solvers and attacks differentiate on their own, and next to the solves of a step the exchange is short. It is the same
exchange at every step, so that a run that was resumed adds numbers up in the same order as one that was not.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from srs.common import machine

RESTARTS = 3  # of all processes together


def launch(count: int, device: torch.device, work: Callable, *arguments) -> None:
    """Call ``work(rank, device, *arguments)`` in ``count`` new processes, which can :func:`average`. Ranks are 0, 1, ...; each
    has a device of the given one's kind. After a death all are started anew, at most ``RESTARTS`` times.

    Raises ValueError where there are fewer devices, and torch's ChildFailedError, with what the first to fail raised.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # which one process need not wait for

    if device.type != "cpu" and count > torch.accelerator.device_count():
        raise ValueError(f"processes = {count} is out of range: there are {torch.accelerator.device_count()} devices")
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=RESTARTS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, _joined)(device.type, torch.get_num_threads(), work, *arguments)
        finally:  # the launcher leaves its own behind
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


def _joined(kind: str, threads: int, work: Callable, *arguments) -> None:
    """What each process does: join the others, then ``work``."""
    machine.prepare_device(threads)
    told, rank, device = os.environ, int(os.environ["RANK"]), torch.device(kind)
    store = dist.TCPStore(told["MASTER_ADDR"], int(told["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(told["TORCHELASTIC_RESTART_COUNT"], store)  # in which no one finds an address of those who died
    backend = dist.get_default_backend_for_device(kind)  # NCCL on GPUs, gloo on processors
    dist.init_process_group(backend, store=store, rank=rank, world_size=int(told["WORLD_SIZE"]))
    if kind != "cpu":
        torch.accelerator.set_device_index(rank)
        device = torch.device(kind, rank)
    work(rank, device, *arguments)
    dist.destroy_process_group()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes; all of them together, in one exchange."""
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(whole)
    whole /= dist.get_world_size()
    for tensor, mean in zip(tensors, whole.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


def of_first(value: float, device: torch.device) -> float:
    """The ``value`` that the first process has, rounded to float32."""
    told = torch.tensor(value, device=device)
    dist.broadcast(told, 0)
    return told.item()
