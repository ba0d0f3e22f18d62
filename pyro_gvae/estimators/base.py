"""The estimator: an ELBO that computes the loss, and a handler of discrete latents if the ELBO needs one."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, final

from torch import Tensor, nn

from ..elbos.rows import SiteGradient
from ..exact import HasPair
from ..handlers.chosen import Sites
from ..handlers.sites import Program
from ..programs.pair import check_pair
from .claims import Bias, Detail, Objective


class Loss(Protocol):
    """The methods of an ELBO that stock `SVI` calls."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add gradients to `.grad` of the parameters."""


class Bound(NamedTuple):
    """An estimator applied to a program: `SVI(model, guide, optim, loss=elbo)`.

    Attributes:
        model: the handled model.
        guide: the handled guide.
        elbo: the loss.
    """

    model: Program
    guide: Program
    elbo: Loss


class HandlesSites(Protocol):
    """A handler that can be told the names of the sites that it acts on."""

    def __call__(self, program: Program, *, sites: Sites) -> Program:
        """Handle these sites of a program."""


@final
@dataclass(frozen=True)
class Summed:
    """A site whose codes are summed within these limits of memory."""

    max_memory: float | None = None
    slice_size: int | None = None
    num_particles: int = 1


@final
@dataclass(frozen=True)
class Scored:
    """A site that is drawn exactly, with a score."""

    num_particles: int = 1


@final
@dataclass(frozen=True)
class Drawn:
    """A site that is drawn exactly, with its own gradient estimator, given by its constructor, and number of draws."""

    gradient: Callable[[], SiteGradient]
    num_particles: int = 1


@final
@dataclass(frozen=True)
class Pathwise:
    """A site that a handler relaxes or draws with a surrogate gradient; its KL may be that of the categoricals."""

    handler: HandlesSites
    has_analytic_kl: bool
    num_particles: int = 1


#: What an estimator does with a single site, whatever happens to the others.
AtSite = Summed | Scored | Drawn | Pathwise


@dataclass(frozen=True, repr=False)
class Estimator:
    """A way to compute the loss of a program with discrete latents, and its gradient.

    Attributes:
        name: its name in the registry.
        elbo: constructs the Pyro loss.
        objective: the objective that the loss estimates.
        bias: the bias of loss and gradient as estimates of that objective, for the *discrete* model.
        reference: where it was published.
        handler: turns the discrete latents of model and guide into what the ELBO expects; None if the ELBO reads the
            programs and sums or draws their codes itself.
        of_guide: a handler of the guide alone, applied before `handler`; None if there is none.
        details: details of the objective, such as the number of samples of a bound or the weight of its KL.
        is_exact: whether nothing is sampled.
        temperature: the handler's temperature; None if nothing is relaxed or the program's own temperature is used.
        num_categories: the only K that it accepts; None if it accepts any.
        at_site: what it does with a single site; None if its loss takes all discrete latents together.
    """

    name: str
    elbo: Callable[[], Loss]
    objective: Objective
    bias: Bias
    reference: str
    handler: Callable[[Program], Program] | None = None
    of_guide: Callable[[Program], Program] | None = None
    details: tuple[Detail, ...] = ()
    is_exact: bool = False
    temperature: float | Tensor | None = None
    num_categories: int | None = None
    at_site: AtSite | None = None

    def __repr__(self) -> str:
        return f"Estimator('{self.name}': {self.approximates}; bias: {self.bias.value}; {self.reference})"

    @property
    def is_unbiased(self) -> bool:
        """Whether the mean of its gradients is the gradient of its objective, for the discrete model."""
        return self.bias is Bias.NONE

    @property
    def approximates(self) -> str:
        """The objective and its details in words, for reports."""
        return self.objective.value + "".join(map(str, self.details))

    def handled(self, program: Program) -> Program:
        """Apply the handler to a program, or return the program as it is if there is no handler."""
        return program if self.handler is None else self.handler(program)

    def bind(self, pair: HasPair) -> Bound:
        """Return the handled model and guide, and the ELBO, ready for stock `SVI`.

        Args:
            pair: a `CategoricalVAE`, or any object with `.model` and `.guide`.

        Returns:
            The three as a :class:`Bound`. The ELBO's own parameters are moved to the device of the pair's.

        Raises:
            ValueError: if there is no pair.

        Example:
            >>> import torch
            >>> from pyro_gvae import CategoricalVAE, estimator
            >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
            >>> model, guide, elbo = estimator("exact").bind(vae)
            >>> elbo.loss(model, guide, torch.ones(4, 6)) > 0
            True
        """
        check_pair(pair)
        elbo = self.elbo()
        parameters = pair.parameters() if isinstance(pair, nn.Module) else iter(())
        for parameter in islice(parameters, 1):  # the ELBO's own state goes to the program's device
            own_state(elbo).to(parameter.device)
        guide = pair.guide if self.of_guide is None else self.of_guide(pair.guide)
        return Bound(self.handled(pair.model), self.handled(guide), elbo)


def own_state(elbo: Loss) -> nn.Module:
    """Return the module that an ELBO trains besides the program, such as a control variate or a running mean.

    An ELBO with such a module has it as its attribute `own`; for others the result is empty. Training updates its
    parameters together with the program's, and checkpoints include it.
    """
    own: nn.Module = getattr(elbo, "own", None) or nn.Module()
    return own
