"""Several processes that train one program: the rank of this one, and communication between them.

Nothing is set up at import. A process without a process group is rank 0 of 1, and communication returns its own values.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .plain import pack, unpack


class Share(NamedTuple):
    """The part of some work that one of several processes does.

    Attributes:
        rank: the number of the process, from 0.
        world_size: the number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def rows(self, x: Tensor) -> Tensor:
        """Return this share's data (B', D) of a batch x (B, D). Shares differ by at most one datum.

        Example:
            >>> [Share(rank, 2).rows(torch.arange(5)).tolist() for rank in (0, 1)]
            [[0, 1, 2], [3, 4]]
        """
        return x if self.world_size == 1 else x.tensor_split(self.world_size)[self.rank]


#: All of the work.
ALONE = Share()


def share() -> Share:
    """Return the share of this process in torch's process group."""
    if dist.is_available() and dist.is_initialized():
        return Share(dist.get_rank(), dist.get_world_size())
    return ALONE


def is_main() -> bool:
    """Return whether this process is rank 0, which writes and decides."""
    return share().rank == 0


def restarts() -> int:
    """Return how often torchrun has restarted these processes after one of them died.

    On several machines, only the one with the failed process counts the restart, so take the largest count.
    """
    return int(largest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))))


def may_restart() -> bool:
    """Return whether torchrun is set to restart processes when one of them dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def own_device(device: str) -> str:
    """Return the device of this process. If torchrun started several on a machine, each has its own GPU.

    Example:
        >>> own_device("cpu")
        'cpu'
    """
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Make the processes that torchrun started one group inside the block: gloo on CPUs, NCCL on GPUs.

    Without torchrun, or if the group exists already, this does nothing.

    Args:
        device: the device of the tensors.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # Everything but the program's tensors is exchanged between CPUs.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun keeps its store when it restarts processes, which then find entries of the dead ones (PyTorch issue
        # 135712), so use a prefix. On several machines restart counts differ; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
        prefix = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        raise ConnectionError(f"Expected all processes to continue, but found that one has ended ({text}).") from error


def from_main(compute: Callable[[], Any]) -> Any:
    """Run a function in rank 0 and return its result, plain data with tensors, in all processes."""
    if share().world_size == 1:
        return compute()
    told = _as_tensor(pack(compute())) if is_main() else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor(len(told))
    with _others():
        dist.broadcast(size, src=0)
        told = told if is_main() else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(told, src=0)
    return unpack(_as_bytes(told))


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes, plain data with tensors, by rank."""
    if share().world_size == 1:
        return [value]
    told = _as_tensor(pack(value))
    sizes = [torch.tensor(0) for _ in range(share().world_size)]
    with _others():
        dist.all_gather(sizes, torch.tensor(len(told)))
        longest = int(max(sizes))
        found = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(found, torch.cat([told, told.new_zeros(longest - len(told))]))
    return [unpack(_as_bytes(one[: int(size)])) for one, size in zip(found, sizes, strict=True)]


def _as_tensor(data: bytes) -> Tensor:
    """Return bytes as a tensor to send: torch would send objects as pickles, which run code when they are read."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(told: Tensor) -> bytes:
    return told.numpy().tobytes()


def largest(number: float) -> float:
    """Return the largest number of all processes, such as elapsed seconds or a signal, so that all decide alike."""
    if share().world_size == 1:
        return number
    sent = torch.tensor(number, dtype=torch.float64)
    with _others():
        dist.all_reduce(sent, dist.ReduceOp.MAX)
    return sent.item()


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Copy the values of tensors from rank 0 to the other processes."""
    if share().world_size > 1:
        with torch.no_grad(), _others():
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum each tensor over all processes, in one message; bit for bit the same in every process."""
    if share().world_size == 1:
        return list(tensors)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    flat = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
    with _others():
        dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


@torch.no_grad()
def log_sum_exp(log_weights: Tensor) -> Tensor:
    r"""Compute :math:`\log \sum_r \exp w_r` over processes r, elementwise."""
    if share().world_size == 1:
        return log_weights
    highest = log_weights.clamp_min(torch.finfo(log_weights.dtype).min)
    with _others():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        total = (log_weights - highest).exp()
        dist.all_reduce(total)
    return highest + total.log()


class Sums(NamedTuple):
    """Loss and number of data, summed over all processes."""

    loss: Tensor  # ()
    num_data: int


@torch.no_grad()
def sum_gradients(
    loss: Tensor, num_data: int, parameters: Sequence[Tensor], buffers: Sequence[Tensor], before: Sequence[Tensor]
) -> Sums:
    """Sum loss and gradients over all processes, in one message, and average the changes of buffers.

    Afterwards all processes have the same gradients and buffers, bit for bit, if they had the same before.

    Args:
        loss: the loss of this process, shape (), summed over its data; NaN if it failed, which makes the sum NaN.
        num_data: number of data of this process, which weighs its changes of buffers.
        parameters: parameters with this process's gradients. A gradient remains None if no process has one.
        buffers: buffers after the step.
        before: values of the buffers before the step.
    """
    floats = [(now, old) for now, old in zip(buffers, before, strict=True) if now.is_floating_point()]
    gradients = [parameter.grad for parameter in parameters]
    sent = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, gradients, strict=True)]
    # Send 0 for an unchanged element, so that it remains the same to the last bit, even if it is infinite.
    sent += [torch.where(now == old, torch.zeros_like(now), now - old) * num_data for now, old in floats]
    sent += [loss.new_tensor([float(grad is not None) for grad in gradients]), loss, loss.new_tensor(float(num_data))]
    *changed, have_gradients, loss, total = summed(sent)
    new_gradients, changes = changed[: len(gradients)], changed[len(gradients) :]
    for parameter, gradient, has_one in zip(parameters, new_gradients, have_gradients.tolist(), strict=True):
        parameter.grad = gradient if has_one else None
    for (now, old), change in zip(floats, changes, strict=True):
        now.copy_(old + change / total)
    return Sums(loss, int(total.item()))
