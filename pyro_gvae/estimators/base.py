"""What an estimator is: an ELBO that forms the loss, and a handler for one-hot sites where it needs one."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ..exact import HasPair
from ..handlers.sites import Program
from .claims import Bias, Detail, Objective


class Loss(Protocol):
    """What stock `SVI` asks of an ELBO."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the same; add gradients to `.grad` of the parameters."""


class Bound(NamedTuple):
    """A program and a loss that belong together: `SVI(model, guide, optim, loss=elbo)`."""

    model: Program
    guide: Program
    elbo: Loss


@dataclass(frozen=True)
class Estimator:
    """How the loss of a program with one-hot sites, and its gradient, are formed.

    Attributes:
        name: in the registry.
        elbo: makes the Pyro loss.
        objective: what the loss estimates.
        bias: of the loss and its gradient as an estimate of that objective, for the *discrete* model.
        reference: where it was published.
        handler: says what the one-hot sites of model and guide are; None where the loss reads the programs, and sums or
            draws their codes itself.
        details: of the objective: the samples of a bound, or what became of its KL.
        is_exact: whether nothing is sampled.
        temperature: what the handler relaxes by, or None where nothing is relaxed, or the program's own is kept.
        num_categories: the only K that it takes, or None where it takes any.
    """

    name: str
    elbo: Callable[[], Loss]
    objective: Objective
    bias: Bias
    reference: str
    handler: Callable[[Program], Program] | None = None
    details: tuple[Detail, ...] = ()
    is_exact: bool = False
    temperature: float | Tensor | None = None
    num_categories: int | None = None

    @property
    def is_unbiased(self) -> bool:
        """Whether the mean of its gradients is the gradient of what it approximates, for the discrete model."""
        return self.bias is Bias.NONE

    @property
    def approximates(self) -> str:
        """The objective and its details in words, for those who read."""
        return self.objective.value + "".join(map(str, self.details))

    def handled(self, program: Program) -> Program:
        """Handle a program, or return it as it is where there is no handler."""
        return program if self.handler is None else self.handler(program)

    def bind(self, pair: HasPair) -> Bound:
        """The handled model and guide, and the ELBO, ready for stock `SVI`.

        Example:
            >>> import torch
            >>> from pyro_gvae import CategoricalVAE, estimator
            >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
            >>> model, guide, elbo = estimator("exact").bind(vae)
            >>> elbo.loss(model, guide, torch.ones(4, 6)) > 0
            True
        """
        elbo = self.elbo()
        parameters = pair.parameters() if isinstance(pair, nn.Module) else iter(())
        for parameter in islice(parameters, 1):  # what an ELBO keeps lies where the program's parameters lie
            own_state(elbo).to(parameter.device)
        return Bound(self.handled(pair.model), self.handled(pair.guide), elbo)


def own_state(elbo: Loss) -> nn.Module:
    """What an ELBO learns besides the program, such as a control variate or a running mean: parameters and buffers.

    An ELBO that has such state keeps it in an attribute `own`, one module. Training steps its parameters together with
    the program's, and a checkpoint keeps all of it.
    """
    own: nn.Module = getattr(elbo, "own", None) or nn.Module()
    return own


def check_particles(num_particles: int, least: int = 1) -> None:
    """Refuse fewer samples per datum than an estimator takes.

    Raises:
        ValueError: if there are fewer than `least`.
    """
    if num_particles < least:
        particles = "one particle" if least == 1 else f"{least} particles"
        raise ValueError(f"Expected at least {particles}, but found num_particles={num_particles}.")
