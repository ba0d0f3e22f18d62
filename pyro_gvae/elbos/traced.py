"""A Pyro ELBO recorded once and replayed: the same numbers without Pyro's handlers and without autograd."""

import functools
import random
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.utils import _pytree as pytree

from .graph import compiled, lift
from .guards import Guard
from .recording import NotRecordable, record

Program = Callable[..., Any]


@final
class TracedELBO(ELBO):
    r"""A drop-in `loss=` for `SVI`: records the loss and gradients of another ELBO and replays them.

    The first step runs the plain ELBO, with Pyro's validation as it is set, and records it: the operations of the
    forward and of the backward pass, as one `torch.fx` graph. Later steps run that graph. Parameters, buffers and data are
    its inputs, so neither a parameter update nor annealing (`vae.temperature = 0.5`) needs another recording. Random
    draws stay random and take from torch's generator what the plain ELBO takes, in the same order: the same seed gives the
    same losses.

    A recording is used again only where nothing that it depends on has changed, else there is another one. Guarded are

    - the arguments: nesting, shape, stride, type and device of tensors, the values of everything else;
    - everything that model, guide and ELBO refer to, as :class:`~pyro_gvae.elbos.guards.Guard` says: a parameter or
      buffer that is new, gone or another tensor (not its values), `train()` and `eval()`, and numbers and other
      attributes of Python, global variables and closures included;
    - which parameters require gradients; torch's default type, device, gradient mode and autocast;
    - Pyro's param store, for the parameters that the program has there.

    The elements of NumPy arrays, and the attributes of Python modules and other files, are not. Calls inside another Pyro
    handler, or with arguments that require gradients, go to the plain ELBO.

    Args:
        elbo: the loss to record, of any kind that Pyro or this package has.
        check: compare each new recording, loss and gradients, with the plain ELBO under the same seed.
        max_recordings: how many are kept; the one that was not used for longest goes first.
        compile: hand the graph to `torch.compile` (Inductor; with CUDA graphs on a GPU), which takes a compiler and
            some seconds and draws other random numbers than the plain ELBO.

    Raises:
        ValueError: at a first step, if a recording cannot hold the program: its control flow or a shape depends on data, it
            takes numbers out of tensors (`.item()`), changes its own Python state, draws random numbers outside of torch,
            or reads a tensor whose replacement could not be noticed.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_gvae.models import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=TracedELBO(Trace_ELBO()))
        >>> for vae.temperature in (1.0, 0.9, 0.8):
        ...     loss = svi.step(torch.ones(4, 6))
        >>> loss > 0, svi.loss.__self__.num_recordings
        (True, 1)
    """

    def __init__(self, elbo: ELBO, *, check: bool = True, max_recordings: int = 16, compile: bool = False) -> None:
        super().__init__(num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles)
        if max_recordings < 1:
            raise ValueError(f"Expected max_recordings of at least 1, but found {max_recordings}.")
        self.elbo = elbo
        self.check = check
        self.max_recordings = max_recordings
        self.compile = compile
        self.num_recordings = 0
        self._recordings: OrderedDict[tuple[Any, Guard], Recording] = OrderedDict()
