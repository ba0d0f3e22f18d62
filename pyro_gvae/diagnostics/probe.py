"""Single estimates of a gradient, by any estimator: with respect to the guide's logits, or to all parameters."""

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

from ..distributions.concrete import RelaxedOneHotCategorical
from ..estimators import Estimator, own_state
from ..exact import HasPair, Pair
from ..handlers import discretize
from ..handlers.parameters import OwnParameters, announce
from ..handlers.sites import Messages, Program, one_hot_site
from ..programs.reader import read_guide
from ..runtime.autograd import kept_gradients
from ..runtime.compat.pyro import leaf_of
from ..runtime.memory import peak_memory
from ..runtime.tuning import tuning

Wrt = Literal["logits", "parameters"]
Term = Literal["elbo", "reconstruction"]
#: Calls that let an estimator's running averages and control variates settle before anything is measured.
WARMUP = 50


class Subject(NamedTuple):
    """A program with its data, apart from its owner: what is done to it changes neither parameters nor param store."""

    pair: HasPair
    x: Tensor
    store: dict[str, Any]  # a state of Pyro's param store

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Modules have their own parameters, programs those of the store as it was, and what they added since."""
        with pyro.get_param_store().scope(self.store), OwnParameters(), torch.enable_grad():  # type: ignore[arg-type]
            yield


def make_subject(pair: HasPair, x: Tensor, *, dtype: torch.dtype | None = None) -> Subject:
    """A copy of a program, if it is a module, with its data.

    Args:
        pair: a `CategoricalVAE`, another module with a model and a guide, or a :class:`~pyro_gvae.exact.Pair`.
        x: data (B, ...).
        dtype: to compute in; None keeps that of the program.

    Raises:
        ValueError: if another type is asked for a program that is not a module.
    """
    if isinstance(pair, nn.Module):
        pair = copy.deepcopy(pair)
        pair = pair if dtype is None else pair.to(dtype)
    elif dtype is not None:
        raise ValueError(f"Expected a module, which can be converted to {dtype}, but found a pair. Try dtype=None.")
    return Subject(pair, x if dtype is None else x.to(dtype), dict(pyro.get_param_store().get_state()))


@final
class Probe:
    """Draws single estimates of the gradient of an estimator's loss, each from one call of the estimator on the data.

    With respect to "logits": those of the guide's one-hot site, of any program. Inside of the estimator's handler, the
    site gets the same distribution on a leaf copy of its logits (B, N, K), so that whatever the handler and the ELBO
    make of the site, they make of the leaf. Data are repeated R times, rows being independent, and one backward pass
    gives R estimates. With respect to "parameters": all of model and guide, flat, one call for each estimate.

    With term "reconstruction" the model's prior is the guide's q, held fixed. KL(q || p) and its gradient then vanish,
    and the loss is -E_q[log p(x|z)]: for estimators with the analytic KL this is total gradient - exact gradient of the
    KL, sample by sample; where the KL is sampled, its noise stays in, with mean 0 (but for relaxed densities at two
    temperatures).

    Args:
        subject: the program and its data.
        estimator: bound here, once: its own state, if it has any, is warmed up by `WARMUP` steps.
        wrt: "logits" or "parameters".
        term: "elbo", or "reconstruction" (logits only).
        vectorize: False for programs whose rows are not independent of each other, of fixed number, or of another
            weight in a larger batch; then each estimate takes a call.

    Raises:
        ValueError: if the guide has not one one-hot site, or the estimator gives it no gradient, or refuses it.
    """

    def __init__(
        self,
        subject: Subject,
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
        pair = subject.pair
        if wrt == "logits" and isinstance(pair, nn.Module):
            pair = copy.deepcopy(pair).requires_grad_(False)  # networks need no backward pass
        self._subject = subject._replace(pair=pair)
        self._others = _parameters(self._subject)  # leaves that are not the guide's logits
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
        at_once = tuning(subject.x.device).repeated_bytes
        used = peak_memory(self) if wrt == "logits" and vectorize and not estimator.is_exact else at_once
        #: How many estimates a call may ask for.
        self.most_repeats = max(1, int(at_once / used))

    def __call__(self, repeats: int = 1) -> Tensor:
        """`repeats` estimates of the gradient of the loss, in nats summed over the data, each flat: (repeats, M)."""
        if self._wrt == "parameters":
            return torch.stack([self._parameter_gradient() for _ in range(repeats)])
        return self._logit_gradients(repeats)

    def step(self, x: Tensor | None = None) -> None:
        """One call of the estimator, forward and backward, whose gradients are thrown away."""
        with kept_gradients(self._others):
            self._call(self._subject.x if x is None else x)

    def _parameter_gradient(self) -> Tensor:
        if not self._others:
            raise ValueError("Expected model or guide to have parameters, but found none. Try wrt='logits'.")
        with kept_gradients(self._others):
            self._call(self._subject.x)
            found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._others]
            return torch.cat([gradient.flatten() for gradient in found])

    def _logit_gradients(self, repeats: int) -> Tensor:
        x = self._subject.x
        x = x.repeat(repeats, *(1,) * (x.dim() - 1)) if repeats > 1 else x
        with self._subject.opened(), torch.no_grad():
            logits = read_guide(functools.partial(self._guide, x)).logits  # (R * B, N, K)
        if repeats > 1 and (logits.dim() != 3 or len(logits) != len(x)):
            raise ValueError(
                f"Expected the guide's logits to have shape (B, N, K), a row for each of {len(x)} data, but found "
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
        with self._subject.opened():
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


def _parameters(subject: Subject) -> list[Tensor]:
    """The leaves of model and guide that a step would train, each once."""
    if isinstance(subject.pair, nn.Module):
        return [parameter for parameter in subject.pair.parameters() if parameter.requires_grad]
    with subject.opened(), poutine.trace(param_only=True) as seen:
        for program in (subject.pair.guide, subject.pair.model):
            discretize(program)(subject.x)
    sites: dict[str, Any] = seen.trace.nodes
    leaves = [leaf_of(site["value"]) for site in sites.values()]
    return list({id(leaf): leaf for leaf in leaves}.values())


class _LogitsMessenger(Messenger):
    """Puts other logits into a program's one-hot site, before an outer handler says what the site is."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def _pyro_sample(self, msg: Messages) -> None:
        site = None if msg["done"] or msg["is_observed"] else one_hot_site(msg["fn"])
        if site is None:
            return
        if isinstance(self.logits, nn.Parameter):
            announce("logits of the guide", self.logits)  # stock ELBOs go backward only where they see a parameter
        event_shape = site.logits.shape[-site.num_event_dims :]
        batch_shape = self.logits.shape[:-2]
        changed = site._replace(logits=self.logits.reshape(*batch_shape, *event_shape))
        temperature = site.temperature
        msg["fn"] = (
            changed.discrete()
            if temperature is None
            else changed.distribution(
                lambda logits: RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False)
            )
        )
