"""The exact ELBO and the exact log-evidence as Pyro losses, summed slice by slice in bounded memory."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor

from ..exact.evaluate import Part, elbo_parts, evidence_parts, find_evidence
from ..exact.programs import Program, Run, read_guide
from ..exact.slices import Plan, leaves, make_plan


class _ExactLoss(ELBO):
    """Abstract: a loss that sums over the codes of the model's one-hot site in place of sampling it."""

    def __init__(self, *, max_memory: float | None = None, slice_size: int | None = None) -> None:
        super().__init__()
        self.max_memory = max_memory
        self.slice_size = slice_size
        self._planned: tuple[Any, Plan] | None = None

    def _get_trace(self, *_: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} draws no sample that a trace could hold.")

    def _plan(self, model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        """The plan of the last call if this one has the same program and the same shapes: it takes a few runs to make."""
        arguments = (*args, *kwargs.items())
        key = (model, [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in arguments])
        if self._planned is None or self._planned[0] != key:
            plan = make_plan(partial(model, *args, **kwargs), max_memory=self.max_memory, slice_size=self.slice_size)
            self._planned = key, plan
        return self._planned[1]
