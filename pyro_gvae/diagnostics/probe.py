"""Draw single estimates of a gradient from any estimator, with respect to the guide's logits or all parameters."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, final

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..distributions.parameters import at_least_float32
from ..estimators import Estimator, own_state
from ..exact import HasPair, Pair
from ..handlers import discretize
from ..handlers.parameters import OwnParameters, announce
from ..handlers.sites import Discrete, Messages, Program, discrete
from ..programs.batches import Batch, arguments, device_of, mapped, num_data, with_rows
from ..programs.latents import first_value
from ..programs.layout import lay_out
from ..programs.modes import without_trace
from ..programs.rows import row_arguments
from ..programs.runs import bind
from ..programs.statements import Reader
from ..runtime.autograd import kept_gradients
from ..runtime.compat.pyro import leaf_of
from ..runtime.memory import peak_memory
from ..runtime.tuning import tuning

Wrt = Literal["logits", "parameters"]
Term = Literal["elbo", "reconstruction"]
#: The logits of a latent, from its name and distribution; None if it keeps its own.
Logits = Callable[[str, Discrete], Tensor | None]
#: Number of calls before anything is measured, in which an estimator's running averages and control variates settle.
WARMUP = 50


class Problem(NamedTuple):
    """A copy of a program with its data: using it changes neither the caller's parameters nor the param store."""

    pair: HasPair
    x: Batch  # data (B, ...), or a tuple or dictionary of all arguments of the programs
    store: dict[str, Any]  # the state of Pyro's param store

    @property
    def num_data(self) -> int:
        """The number of data, B."""
        return num_data(self.x)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Run with the modules' own parameters and the copied param store, which keeps what is added to it."""
        with pyro.get_param_store().scope(self.store), OwnParameters(), torch.enable_grad():  # type: ignore[arg-type]
            yield


def make_problem(pair: HasPair, x: Batch, *, dtype: torch.dtype | None = None) -> Problem:
    """Make a problem from a program and its data; a module is copied.

    Args:
        pair: a `CategoricalVAE`, another module with a model and a guide, or a :class:`~pyro_gvae.exact.Pair`.
        x: data (B, ...), or a tuple or dictionary of all arguments of the programs.
        dtype: the type to compute in; None keeps that of the program.

    Raises:
        ValueError: if `dtype` is given for a program that is not a module.
    """
    if isinstance(pair, nn.Module):
        pair = copy.deepcopy(pair)
        pair = pair if dtype is None else pair.to(dtype)
    elif dtype is not None:
        raise ValueError(f"Expected a module, which can be converted to {dtype}, but found a pair. Try dtype=None.")
    if dtype is not None:
        x = mapped(lambda value: value.to(dtype) if is_floating(value) else value, x)
    return Problem(pair, x, dict(pyro.get_param_store().get_state()))


def is_floating(value: Any) -> bool:
    """Return whether an argument of a program is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def is_deterministic(problem: Problem, estimator: Estimator) -> bool:
    """Return whether an estimator's gradient is always the same: it sums over codes, and nothing else is latent."""
    return estimator.is_exact and not _read(problem, problem.pair.guide, problem.x).continuous()


def _read(problem: Problem, guide: Program, x: Batch) -> Reader:
    """Run the guide once to see its latents."""
    reader, given = Reader(first_value, lambda _, fn: fn.sample()), arguments(x)
    with problem.opened(), torch.no_grad(), without_trace():
        reader.run(functools.partial(guide, *given.args, **given.kwargs))
    return reader


@final
class Probe:
    """Draw single estimates of the gradient of an estimator's loss, each from one call of the estimator on the data.

    wrt="logits": the logits of the guide's discrete latents, for any program. Inside the estimator's handler, an offset
    of zeros, a leaf (B, N, K), is added to the logits of each latent, so that handler and ELBO use it; where a latent
    depends on others, so do the logits to which it is added. If no data share a latent, rows are independent, and data
    repeated R times give R estimates in one backward pass. wrt="parameters": all parameters of model and guide, flat,
    one call per estimate.

    With term="reconstruction" the model's prior is replaced by the guide's q, held fixed. KL(q || p) and its gradient
    then vanish, and the loss is -E_q[log p(x|z)]. For estimators with the analytic KL, each sample is the total
    gradient minus the exact gradient of the KL. If the KL is sampled, its noise remains, with mean 0 (except for
    relaxed densities at two temperatures).

    Args:
        problem: the program and its data.
        estimator: the estimator; it is bound once, and its own state, if any, is warmed up by `WARMUP` steps.
        wrt: "logits" or "parameters".
        term: "elbo", or "reconstruction" (logits only).
        vectorize: False takes a call for each estimate, for programs whose rows depend on each other or their number.

    Raises:
        ValueError: if the guide has no discrete latent; for the reconstruction term, if latents depend on each other or
            are continuous, since q cannot then be used as a prior; or if the estimator refuses the program or gives the
            logits no gradient.
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
        with problem.opened():
            self._rows = row_arguments(pair, problem.x)
        self._others = parameters(self._problem)  # leaves that are not offsets of the guide's logits
        self._offsets: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}  # logits of q, which replace the prior's if the KL is left out
        self._guide = pair.guide
        is_sampled = not is_deterministic(problem, estimator)
        if wrt == "logits":
            if term == "reconstruction":
                self._check_independent()
            pair = Pair(
                self._with_logits(pair.model, lambda name, _: self._fixed.get(name))
                if term == "reconstruction"
                else pair.model,
                self._with_logits(pair.guide, self._moved),
            )
        self.model, self.guide, self.elbo = estimator.bind(pair)
        self._own = own_state(self.elbo)
        self._warm_up()
        at_once = tuning(device_of(problem.x)).repeated_bytes
        repeatable = wrt == "logits" and vectorize and is_sampled and self._is_repeatable()
        used = peak_memory(self) if repeatable else at_once
        #: The most estimates that one call can return.
        self.most_repeats = max(1, int(at_once / used))

    def __call__(self, repeats: int = 1) -> Tensor:
        """Draw `repeats` estimates of the gradient of the loss in nats, summed over the data: flat, (repeats, M)."""
        if self._wrt == "parameters":
            return torch.stack([self._parameter_gradient() for _ in range(repeats)])
        return self._logit_gradients(repeats)

    def step(self, x: Batch | None = None) -> None:
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
        x = self._repeated(repeats)
        found = {name: site.logits for name, site in _read(self._problem, self._guide, x).discrete.items()}
        if not found:
            raise ValueError("Expected the guide to have a discrete latent, but found none. Try wrt='parameters'.")
        self._fixed = {name: logits.detach() for name, logits in found.items()}
        self._offsets = {name: nn.Parameter(torch.zeros_like(at_least_float32(own))) for name, own in found.items()}
        self.step(x)
        if all(offset.grad is None for offset in self._offsets.values()):
            raise ValueError(
                f"Expected '{self._name}' to have a gradient with respect to the guide's logits, but found none. "
                "Try wrt='parameters'."
            )
        found = {name: torch.zeros_like(own) if own.grad is None else own.grad for name, own in self._offsets.items()}
        return torch.cat([gradient.reshape(repeats, -1) for gradient in found.values()], 1)

    def _is_repeatable(self) -> bool:
        """Return whether repeated data have latents of their own, so that each repetition is an estimate."""
        try:
            once, twice = (_read(self._problem, self._guide, self._repeated(repeats)) for repeats in (1, 2))
        except (ValueError, RuntimeError):  # the guide accepts only this number of data
            return False
        shapes = [{name: fn.batch_shape for name, fn in _latents(reader).items()} for reader in (once, twice)]
        size = self._problem.num_data
        return all(
            shape[:1] == (size,) and shapes[1].get(name) == torch.Size((2 * size, *shape[1:]))
            for name, shape in shapes[0].items()
        )

    def _repeated(self, repeats: int) -> Batch:
        """Repeat the data, and all arguments that have a row for each datum."""

        def longer(value: Tensor) -> Tensor:
            return value.repeat(repeats, *(1,) * (value.dim() - 1))

        return self._problem.x if repeats == 1 else with_rows(longer, self._problem.x, self._rows)

    def _check_independent(self) -> None:
        with self._problem.opened():
            given = arguments(self._problem.x)
            layout = lay_out(bind(self._problem.pair.model, self._guide, *given.args, **given.kwargs))
        if layout.guide_depends or layout.has_continuous:
            raise ValueError(
                "Expected discrete latents that are independent in the guide for the reconstruction term, but found "
                "some that depend on others, or continuous ones: q cannot then be used as a prior. Try the whole ELBO."
            )

    def _call(self, x: Batch) -> None:
        given = arguments(x)
        for parameter in self._own.parameters():
            parameter.grad = None
        with self._problem.opened():
            self.elbo.loss_and_grads(self.model, self.guide, *given.args, **given.kwargs)

    def _warm_up(self) -> None:
        parameters = list(self._own.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
        for _ in range(WARMUP if self._own.state_dict() else 0):
            self()
            if optimizer is not None:
                optimizer.step()

    def _with_logits(self, program: Program, logits: Logits) -> Program:
        @functools.wraps(program)
        def changed(*args: Any, **kwargs: Any) -> Any:
            with _LogitsMessenger(logits):
                return program(*args, **kwargs)

        return changed

    def _moved(self, name: str, site: Discrete) -> Tensor | None:
        if name not in self._offsets:
            return None
        announce(f"logits of {name}", self._offsets[name])  # stock ELBOs skip the backward pass without a parameter
        return site.logits + self._offsets[name]


def _latents(reader: Reader) -> dict[str, Any]:
    return {name: msg["fn"] for name, msg in reader.messages.items() if not msg["is_observed"]}


def parameters(problem: Problem) -> list[Tensor]:
    """List the leaves of model and guide that a step would train, without duplicates."""
    if isinstance(problem.pair, nn.Module):
        return [parameter for parameter in problem.pair.parameters() if parameter.requires_grad]
    given = arguments(problem.x)
    with problem.opened(), poutine.trace(param_only=True) as seen:
        for program in (problem.pair.guide, problem.pair.model):
            discretize(program)(*given.args, **given.kwargs)
    sites: dict[str, Any] = seen.trace.nodes
    leaves = [leaf_of(site["value"]) for site in sites.values()]
    return list({id(leaf): leaf for leaf in leaves}.values())


@final
class _LogitsMessenger(Messenger):
    """Replaces the logits of a program's discrete latents, before an outer handler changes these.

    Args:
        logits: the logits of a latent, from its name and distribution; None if it keeps its own.
    """

    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self.logits = logits

    def _pyro_sample(self, msg: Messages) -> None:
        site = None if msg["done"] or msg["is_observed"] else discrete(msg["fn"])
        logits = None if site is None else self.logits(msg["name"], site)
        if site is None or logits is None:
            return
        changed = site.with_logits(logits)
        msg["fn"] = changed.discrete() if site.temperature is None else changed.relaxed(site.temperature)
