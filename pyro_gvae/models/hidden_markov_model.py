"""Define a hidden Markov model with an amortized guide, as a Pyro model and guide."""

from typing import Any, Final, final

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.mask_messenger import MaskMessenger
from torch import Tensor, nn
from typing_extensions import override

from ..handlers.sites import at_temperature
from .base import VAE, check_sizes
from .observations import Observation


@final
class HiddenMarkovModel(VAE):
    r"""A hidden Markov model of sequences, with a guide that reads each sequence from its end.

    .. math::

        z_0 &\sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{initial\_logits})) \\
        z_t | z_{t-1} &\sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{transition\_logits}_{z_{t-1}})) \\
        x_t | z_t &\sim \mathrm{Observation}(\mathrm{natural}_{z_t}) \\
        q(z_0 | x) &\propto \exp(\mathrm{guide\_initial\_logits}_{z_0} + h_{0, z_0}) \\
        q(z_t | z_{t-1}, x) &\propto \exp(\mathrm{guide\_transition\_logits}_{z_{t-1}, z_t} + h_{t, z_t}),
        \quad h_t = \mathrm{encoder}(x_t, \ldots, x_{T-1})

    The guide has the form of the exact posterior, in which h_t is log p(x_t, ..., x_{T-1} | z_t) (Rabiner 1989, *A
    Tutorial on Hidden Markov Models*). Here a GRU approximates h_t, which is why the bound is below the evidence.

    The sites are "z0", "x0", "z1", "x1" and so on, one-hots (K,) and data (D,), in the plate "data" and in
    `pyro.markov`, so exact sums take time linear in T. Sites beyond the end of a sequence are masked.

    Args:
        data_dim: D.
        num_states: K.
        hidden: width of the guide's GRU.
        observation: a name or a module, as for :class:`~pyro_gvae.CategoricalVAE`.
        **options: `scale`, `num_levels`, `temperature`, `prior_temperature` and `name`, as for
            :class:`~pyro_gvae.CategoricalVAE`.

    Raises:
        ValueError: if a size or a temperature is out of range, or the observation or one of its options is unknown.

    Example:
        >>> from pyro_gvae import exact
        >>> hmm = HiddenMarkovModel(data_dim=2, num_states=3, hidden=4, observation="gaussian")
        >>> x, lengths = torch.randn(6, 4, 2), torch.tensor([4, 4, 3, 1, 4, 2])  # six sequences of up to four steps
        >>> bool((exact.elbo(hmm, x, lengths) <= exact.log_evidence(hmm, x, lengths)).all())
        True
    """

    def __init__(
        self,
        data_dim: int,
        num_states: int = 10,
        hidden: int = 64,
        *,
        observation: str | Observation = "bernoulli",
        **options: Any,
    ) -> None:
        check_sizes(data_dim=data_dim, num_states=num_states, hidden=hidden)
        super().__init__(data_dim, observation, **options)
        self.num_states: Final = num_states
        self.initial_logits = nn.Parameter(torch.zeros(num_states))
        self.transition_logits = nn.Parameter(torch.zeros(num_states, num_states))  # rows are from, columns to
        self.natural = nn.Parameter(torch.randn(num_states, self.natural_dim))  # equal states would stay equal
        self.gru = nn.GRU(data_dim, hidden, batch_first=True)
        self.messages = nn.Linear(hidden, num_states)
        self.guide_initial_logits = nn.Parameter(torch.zeros(num_states))
        self.guide_transition_logits = nn.Parameter(torch.zeros(num_states, num_states))

    @override
    def model(self, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Run the model p(z_0) p(x_0 | z_0) p(z_1 | z_0) p(x_1 | z_1) ...

        Args:
            x: sequences (B, T, D).
            lengths: the number of steps of each sequence (B,), integers 1 to T; None if all have T steps.

        Returns:
            The states z_0 to z_{T-1}, each (B, K), one-hots.

        Raises:
            ValueError: if lengths do not have shape (B,), are not integers or, under Pyro's validation, out of range.
        """
        self._begin(x)
        _check_lengths(x, lengths)
        states: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                logits = states[-1] @ self.transition_logits if states else self.initial_logits
                with _within(lengths, t):
                    states.append(_sample(t, logits, self.prior_temperature))  # (B, K)
                    pyro.sample(f"x{t}", self.observation(states[-1] @ self.natural), obs=x[:, t])
        return states

    @override
    def guide(self, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Run the guide q(z_0 | x) q(z_1 | z_0, x) ...

        Args:
            x: sequences (B, T, D).
            lengths: as for :meth:`model`.

        Returns:
            The states z_0 to z_{T-1}, each (B, K), one-hots.

        Raises:
            ValueError: as :meth:`model`.
        """
        self._begin(x)
        _check_lengths(x, lengths)
        messages = self.encoder(x, lengths)  # (B, T, K)
        states: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                before = states[-1] @ self.guide_transition_logits if states else self.guide_initial_logits
                with _within(lengths, t):
                    states.append(_sample(t, before + messages[:, t], self.temperature))
        return states

    def encoder(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return h, computed from each sequence (B, T, D) by reading it from its end; shape (B, T, K)."""
        steps = torch.arange(x.shape[1], device=x.device)
        ends = torch.full((len(x),), x.shape[1], device=x.device) if lengths is None else lengths
        # Each sequence backwards from its end, then its padding, which so does not affect the steps before the end.
        backwards = (ends.unsqueeze(-1) - 1 - steps) % x.shape[1]  # (B, T)
        rows = torch.arange(len(x), device=x.device).unsqueeze(-1)
        outputs, _ = self.gru(x[rows, backwards])
        messages: Tensor = self.messages(outputs)[rows, backwards]
        return messages

    @override
    def as_taken(self, x: Tensor) -> Tensor:
        """Return data as they are: sequences (M, T, D)."""
        return x

    @override
    def _check_shape(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.data_dim or 0 in x.shape:
            raise ValueError(
                f"Expected sequences of shape (B, T, {self.data_dim}), but found {tuple(x.shape)}. Try "
                "x.unsqueeze(-1) for sequences of single numbers."
            )


def _sample(t: int, logits: Tensor, temperature: Tensor) -> Tensor:
    state: Tensor = pyro.sample(f"z{t}", dist.OneHotCategorical(logits=logits), infer=at_temperature(temperature))
    return state


def _within(lengths: Tensor | None, t: int) -> MaskMessenger:
    """Mask the sites of step t where a sequence has ended."""
    within: Any = True if lengths is None else t < lengths  # Any: Pyro's masks have a type of their own
    return poutine.mask(mask=within)


def _check_lengths(x: Tensor, lengths: Tensor | None) -> None:
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or lengths.is_floating_point():
        raise ValueError(
            f"Expected lengths as {len(x)} integers, one for each sequence, but found {lengths.dtype} of shape "
            f"{tuple(lengths.shape)}. Try lengths=None if all have {x.shape[1]} steps."
        )
    if is_validation_enabled():
        least, most = (bound.item() for bound in lengths.aminmax())
        if least < 1 or most > x.shape[1]:
            raise ValueError(f"Expected lengths of 1 to {x.shape[1]}, but found {least} to {most}.")
