"""Several processes that train one program: who this one is, and what they tell each other.

Nothing is set up at import. A process without a process group is alone: it is rank 0 of 1, and what is told is what was
said.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Share(NamedTuple):
    """The part of some work that one of several processes does.

    Attributes:
        rank: which process, from 0.
        world_size: of how many.
    """

    rank: int = 0
    world_size: int = 1

    def rows(self, x: Tensor) -> Tensor:
        """Its data (B', D) of a batch x (B, D): as many as others have, or one more.

        Example:
            >>> [Share(rank, 2).rows(torch.arange(5)).tolist() for rank in (0, 1)]
            [[0, 1, 2], [3, 4]]
        """
        return x if self.world_size == 1 else x.tensor_split(self.world_size)[self.rank]


#: All of the work.
ALONE = Share()


def share() -> Share:
    """Of this process, in torch's process group."""
    if dist.is_available() and dist.is_initialized():
        return Share(dist.get_rank(), dist.get_world_size())
    return ALONE


def is_main() -> bool:
    """Whether this is the process that writes and decides, rank 0."""
    return share().rank == 0


def restarts() -> int:
    """How often torchrun has started these processes again after one of them died.

    On several machines only the one that it died on counts that, and is believed.
    """
    return int(largest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))))


def may_restart() -> bool:
    """Whether torchrun was told to start processes again when one of them dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def own_device(device: str) -> str:
    """The device of this process: where torchrun has started several on a machine, each has a GPU of its own.

    Example:
        >>> own_device("cpu")
        'cpu'
    """
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Inside of the block, the processes that torchrun started are one group: gloo on CPUs, NCCL on GPUs.

    Without torchrun, or where the group is there already, nothing is done.

    Args:
        device: where tensors lie.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # What is no tensor of the program travels between CPUs.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun keeps its store when it restarts processes, which then find the dead there (PyTorch issue
        # 135712). The agents of several machines do not count alike: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is for them.
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
        raise ConnectionError(f"Expected all processes to go on, but found that one has ended ({text}).") from error


def from_main(compute: Callable[[], Any]) -> Any:
    """What rank 0 finds, told to all: plain data with tensors. The others wait, and do not compute it."""
    if share().world_size == 1:
        return compute()
    found = [_packed(compute()) if is_main() else None]
    with _others():
        dist.broadcast_object_list(found, src=0)
    return _unpacked(found[0])


def gathered(value: Any) -> list[Any]:
    """The value of each process, by rank: plain data with tensors."""
    if share().world_size == 1:
        return [value]
    found: list[Any] = [None] * share().world_size
    with _others():
        dist.all_gather_object(found, _packed(value))
    return [_unpacked(one) for one in found]


def _packed(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(found: Any) -> Any:
    """Reading runs no code of the sender."""
    return torch.load(io.BytesIO(found), weights_only=True)


def largest(number: float) -> float:
    """The largest number that a process gives, so that all decide alike: seconds passed, a signal."""
    if share().world_size == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64)
    with _others():
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.item()


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Give tensors the values that they have in rank 0."""
    if share().world_size > 1:
        with torch.no_grad(), _others():
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over all processes of each tensor, told in one message; bit for bit the same in every process."""
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
    r""":math:`\log \sum_r \exp w_r` over processes r, elementwise, of tensors of one shape."""
    if share().world_size == 1:
        return log_weights
    highest = log_weights.clamp_min(torch.finfo(log_weights.dtype).min)
    with _others():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        total = (log_weights - highest).exp()
        dist.all_reduce(total)
    return highest + total.log()


class Sums(NamedTuple):
    """Over all processes."""

    loss: Tensor  # ()
    num_data: int


@torch.no_grad()
def sum_gradients(
    loss: Tensor, num_data: int, parameters: Sequence[Tensor], buffers: Sequence[Tensor], before: Sequence[Tensor]
) -> Sums:
    """Sum loss and gradients over all processes, in one message, and let buffers change by the mean of their changes.

    Afterwards all processes have the same gradients and buffers, bit for bit, if they had the same before.

    Args:
        loss: of this process, shape (), summed over its data; NaN if it has failed, which is then so for all.
        num_data: of this process; buffers' changes are weighed by it.
        parameters: with gradients, or None, where no process has one.
        buffers: as a step has left them.
        before: as they were before the step.
    """
    floats = [(now, old) for now, old in zip(buffers, before, strict=True) if now.is_floating_point()]
    gradients = [parameter.grad for parameter in parameters]
    told = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, gradients, strict=True)]
    # A buffer that has not changed is told as 0, and stays as it is to the last bit, be it infinite.
    told += [torch.where(now == old, torch.zeros_like(now), now - old) * num_data for now, old in floats]
    told += [loss.new_tensor([float(grad is not None) for grad in gradients]), loss, loss.new_tensor(float(num_data))]
    *changed, have_gradients, loss, total = summed(told)
    new_gradients, changes = changed[: len(gradients)], changed[len(gradients) :]
    for parameter, gradient, has_one in zip(parameters, new_gradients, have_gradients.tolist(), strict=True):
        parameter.grad = gradient if has_one else None
    for (now, old), change in zip(floats, changes, strict=True):
        now.copy_(old + change / total)
    return Sums(loss, int(total.item()))
