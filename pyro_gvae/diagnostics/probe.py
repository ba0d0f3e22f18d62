"""Draw single estimates of a gradient from any estimator, with respect to the guide's logits or all parameters."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, final

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..estimators import Estimator, own_state
from ..exact import HasPair, Pair
from ..handlers import discretize
from ..handlers.parameters import OwnParameters, announce
from ..handlers.sites import Messages, Program, discrete
from ..programs.reader import read_guide
from ..runtime.autograd import kept_gradients
from ..runtime.compat.pyro import leaf_of
from ..runtime.memory import peak_memory
from ..runtime.tuning import tuning

Wrt = Literal["logits", "parameters"]
Term = Literal["elbo", "reconstruction"]
#: Number of calls before anything is measured, in which an estimator's running averages and control variates settle.
WARMUP = 50


class Problem(NamedTuple):
    """A copy of a program with its data: using it changes neither the caller's parameters nor the param store."""

    pair: HasPair
    x: Tensor
    store: dict[str, Any]  # the state of Pyro's param store

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Run with the parameters of the modules, and with the copied param store and what was added to it since."""
        with pyro.get_param_store().scope(self.store), OwnParameters(), torch.enable_grad():  # type: ignore[arg-type]
            yield


def make_problem(pair: HasPair, x: Tensor, *, dtype: torch.dtype | None = None) -> Problem:
    """Make a problem of a program and its data; a module is copied.

    Args:
        pair: a `CategoricalVAE`, another module with a model and a guide, or a :class:`~pyro_gvae.exact.Pair`.
        x: data (B, ...).
        dtype: the type to compute in; None keeps that of the program.

    Raises:
        ValueError: if `dtype` is given for a program that is not a module.
    """
    if isinstance(pair, nn.Module):
        pair = copy.deepcopy(pair)
        pair = pair if dtype is None else pair.to(dtype)
    elif dtype is not None:
        raise ValueError(f"Expected a module, which can be converted to {dtype}, but found a pair. Try dtype=None.")
    return Problem(pair, x if dtype is None else x.to(dtype), dict(pyro.get_param_store().get_state()))


@final
class Probe:
    """Draw single estimates of the gradient of an estimator's loss, each from one call of the estimator on the data.

    wrt="logits": the logits of the guide's one-hot site, for any program. Inside the estimator's handler, the site gets
    the same distribution with a leaf copy of its logits (B, N, K), so that handler and ELBO use the leaf. Rows are
    independent, so data repeated R times give R estimates in one backward pass. wrt="parameters": all parameters of
    model and guide, flat, one call per estimate.

    With term="reconstruction" the model's prior is replaced by the guide's q, held fixed. KL(q || p) and its gradient
    then vanish, and the loss is -E_q[log p(x|z)]. For estimators with the analytic KL, each sample is the total
    gradient minus the exact gradient of the KL. If the KL is sampled, its noise remains, with mean 0 (except for
    relaxed densities at two temperatures).

    Args:
        problem: the program and its data.
        estimator: the estimator; it is bound once, and its own state, if any, is warmed up by `WARMUP` steps.
        wrt: "logits" or "parameters".
        term: "elbo", or "reconstruction" (logits only).
        vectorize: set to False, so that each estimate takes a call, for programs whose rows depend on each other or
            have another weight in a larger batch, or that need a fixed number of rows.

    Raises:
        ValueError: if the guide does not have exactly one one-hot site, or the estimator refuses the program or gives
            the logits no gradient.
    """

    def __init__(
        self,
        problem: Problem,
        estimator: Estimator,
        *,
        wrt: Wrt = "logits",
        term: Term = "elbo",
        vectorize: bool = True,
    ) -> None:
        if term != "elbo" and wrt != "logits":
            raise ValueError("Expected the reconstruction term with respect to logits, but found wrt='parameters'.")
        self._wrt = wrt
        self._name = estimator.name
        pair = problem.pair
        if wrt == "logits" and isinstance(pair, nn.Module):
            pair = copy.deepcopy(pair).requires_grad_(False)  # networks need no backward pass
        self._problem = problem._replace(pair=pair)
        self._others = _parameters(self._problem)  # leaves that are not the guide's logits
        self._logits: nn.Parameter | None = None
        if wrt == "logits":
            self._guide = pair.guide
            pair = Pair(
                self._with_logits(pair.model, prior=True) if term == "reconstruction" else pair.model,
                self._with_logits(pair.guide, prior=False),
            )
        self.model, self.guide, self.elbo = estimator.bind(pair)
        self._own = own_state(self.elbo)
        self._warm_up()
        at_once = tuning(problem.x.device).repeated_bytes
        used = peak_memory(self) if wrt == "logits" and vectorize and not estimator.is_exact else at_once
        #: The most estimates that one call can return.
        self.most_repeats = max(1, int(at_once / used))

    def __call__(self, repeats: int = 1) -> Tensor:
        """Draw `repeats` estimates of the gradient of the loss in nats, summed over the data: flat, (repeats, M)."""
        if self._wrt == "parameters":
            return torch.stack([self._parameter_gradient() for _ in range(repeats)])
        return self._logit_gradients(repeats)

    def step(self, x: Tensor | None = None) -> None:
        """Call the estimator once, forward and backward, and discard the gradients."""
        with kept_gradients(self._others):
            self._call(self._problem.x if x is None else x)

    def _parameter_gradient(self) -> Tensor:
        if not self._others:
            raise ValueError("Expected model or guide to have parameters, but found none. Try wrt='logits'.")
        with kept_gradients(self._others):
            self._call(self._problem.x)
            found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._others]
            return torch.cat([gradient.flatten() for gradient in found])

    def _logit_gradients(self, repeats: int) -> Tensor:
        x = self._problem.x
        x = x.repeat(repeats, *(1,) * (x.dim() - 1)) if repeats > 1 else x
        with self._problem.opened(), torch.no_grad():
            logits = read_guide(functools.partial(self._guide, x)).logits  # (R * B, N, K)
        if repeats > 1 and (logits.dim() != 3 or len(logits) != len(x)):
            raise ValueError(
                f"Expected the guide's logits to have shape (B, N, K), one row for each of {len(x)} data, but found "
                f"{tuple(logits.shape)}. Try vectorize=False."
            )
        self._logits = nn.Parameter(logits.clone())
        self.step(x)
        if self._logits.grad is None:
            raise ValueError(
                f"Expected '{self._name}' to have a gradient with respect to the guide's logits, but found none. "
                "Try wrt='parameters'."
            )
        return self._logits.grad.reshape(repeats, -1)

    def _call(self, x: Tensor) -> None:
        for parameter in self._own.parameters():
            parameter.grad = None
        with self._problem.opened():
            self.elbo.loss_and_grads(self.model, self.guide, x)

    def _warm_up(self) -> None:
        parameters = list(self._own.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
        for _ in range(WARMUP if self._own.state_dict() else 0):
            self()
            if optimizer is not None:
                optimizer.step()

    def _with_logits(self, program: Program, *, prior: bool) -> Program:
        @functools.wraps(program)
        def changed(*args: Any, **kwargs: Any) -> Any:
            assert self._logits is not None
            with _LogitsMessenger(self._logits.detach() if prior else self._logits):
                return program(*args, **kwargs)

        return changed


def _parameters(problem: Problem) -> list[Tensor]:
    """List the leaves of model and guide that a step would train, without duplicates."""
    if isinstance(problem.pair, nn.Module):
        return [parameter for parameter in problem.pair.parameters() if parameter.requires_grad]
    with problem.opened(), poutine.trace(param_only=True) as seen:
        for program in (problem.pair.guide, problem.pair.model):
            discretize(program)(problem.x)
    sites: dict[str, Any] = seen.trace.nodes
    leaves = [leaf_of(site["value"]) for site in sites.values()]
    return list({id(leaf): leaf for leaf in leaves}.values())


class _LogitsMessenger(Messenger):
    """Replace the logits of a program's one-hot site, before an outer handler changes the site."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def _pyro_sample(self, msg: Messages) -> None:
        site = None if msg["done"] or msg["is_observed"] else discrete(msg["fn"])
        if site is None:
            return
        if isinstance(self.logits, nn.Parameter):
            announce("logits of the guide", self.logits)  # stock ELBOs skip the backward pass if they see no parameter
        changed = site.with_logits(self.logits.reshape(*self.logits.shape[:-2], *site.shape, site.num_categories))
        msg["fn"] = changed.discrete() if site.temperature is None else changed.relaxed(site.temperature)
