"""One value of each latent of a guide: the most probable one, or a draw."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import one_hot

from ..distributions.one_hot import FactorizedOneHotCategorical
from ..handlers.sites import Discrete, Run
from .latents import latent_of
from .statements import Draw, Reader


class Choice(NamedTuple):
    """A value of each latent of a guide, in the guide's order."""

    codes: dict[str, Tensor]  # one-hots (*batch, N, K) of the discrete latents
    values: dict[str, Tensor]  # values of all latents, as programs take them


def choose(guide: Run, code: Callable[[Tensor], Tensor], draw: Draw) -> Choice:
    """Run the guide once, with a value of each latent.

    Args:
        guide: the guide with its data bound.
        code: chooses a code from log-probabilities (*batch, N, K).
        draw: chooses the value of a continuous latent.
    """
    codes: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def place(name: str, found: Discrete) -> Tensor:
        codes[name] = code(found.log_probs)
        values[name] = latent_of(name, found).value(codes[name])
        return values[name]

    def drawn(name: str, fn: Any) -> Tensor:
        values[name] = draw(name, fn)
        return values[name]

    Reader(place, drawn).run(guide)
    return Choice(codes, values)


def latent_values(guide: Run, code: Callable[[Tensor], Tensor], draw: Draw) -> dict[str, Tensor]:
    """Run the guide once as :func:`choose` does, and return codes of discrete latents and values of others."""
    found = choose(guide, code, draw)
    return found.values | found.codes


def most_probable(log_probs: Tensor) -> Tensor:
    """Return the most probable one-hots under log-probabilities (..., N, K)."""
    return one_hot(log_probs.argmax(-1), log_probs.shape[-1]).to(log_probs)


def one_draw(log_probs: Tensor) -> Tensor:
    """Draw one-hots from log-probabilities (..., N, K)."""
    return FactorizedOneHotCategorical(logits=log_probs, validate_args=False).sample()
