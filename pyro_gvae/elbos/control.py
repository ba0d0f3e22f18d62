"""The learned parameters of REBAR and RELAX, and the value of their control variate."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..programs.factors import Layout
from ..programs.kept import Kept
from ..programs.samples import Change, Sample
from ..programs.target import Target
from .own import fit_to, take_types_and_width

#: Relative perturbed logits are clamped to at least this value. Lower ones have probability 0 in any softmax; excluded
#: categories have -inf, which would give 0 * inf.
LOWEST = -1e4


@final
class Network(nn.Module):
    """A network r(y) = v . tanh(W y + a) of soft codes y, with one hidden layer; initially v = 0, as in REBAR.

    W is empty until the first codes determine its width. It remains the same tensor object, so an optimizer or a
    recording may keep it, which `nn.LazyLinear` does not allow. W y leaves out latents that a later batch observes.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, 0))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Parameter(torch.zeros(hidden))
        # The columns of the first batch. They are not part of the state: a resumed loss finds them again, which must
        # not invalidate a recording.
        self._columns: Kept[dict[str, slice]] = Kept()

    def take_widths(self, widths: Mapping[str, int]) -> None:
        """Initialize W for latents with codes of these widths, if that has not been done.

        Raises:
            ValueError: if W was made for other latents.
        """
        if self.weight.numel() == 0:
            self.weight.data = nn.init.xavier_uniform_(self.bias.new_empty(len(self.bias), sum(widths.values())))
        known = {name: own.stop - own.start for name, own in self._columns_of(widths).items()}
        if not widths.items() <= known.items():
            raise ValueError(self._of_others(widths))

    def _columns_of(self, widths: Mapping[str, int]) -> dict[str, slice]:
        """Return the columns of W for each latent of the first batch; `widths` may be those of only some of them."""

        def of_first() -> dict[str, slice]:
            if self.weight.shape[1] != sum(widths.values()):
                raise ValueError(self._of_others(widths))
            stops = itertools.accumulate(widths.values())
            return {name: slice(stop - widths[name], stop) for name, stop in zip(widths, stops, strict=True)}

        return self._columns.find(None, (), {}, of_first)

    def _of_others(self, widths: Mapping[str, int]) -> str:
        return (
            f"Expected codes of {self.weight.shape[1]} numbers N x K, as before, but found {sum(widths.values())} for "
            f"{', '.join(widths)}. Try a new RELAX() for another model; if some batches observe latents, start with "
            "one that observes none."
        )

    def forward(self, soft: Mapping[str, Tensor]) -> Tensor:
        """Return r, shape (P, B), from the codes (P, B, N, K) of each latent, by name."""
        codes = torch.cat([own.flatten(-2) for own in soft.values()], -1).to(self.weight.dtype)
        columns = self._columns_of({name: own.shape[-2:].numel() for name, own in soft.items()})
        is_whole = list(soft) == list(columns)
        weight = self.weight if is_whole else torch.cat([self.weight[:, columns[name]] for name in soft], 1)
        return torch.tanh(F.linear(codes, weight, self.bias)) @ self.output


@final
class Control(nn.Module):
    """The parameters that REBAR and RELAX learn: the scale eta, the temperature t and, for RELAX, the network r."""

    def __init__(self, temperature: float, network: Network | None = None) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.network = network
        self.register_load_state_dict_pre_hook(take_types_and_width)

    def fit_to(self, layout: Layout) -> None:
        """Take the dtype and device of a program's latents, and initialize the network for their width."""
        fit_to(self, layout)
        if self.network is not None and layout.space.latents:
            self.network.take_widths({one.name: one.num_latents * one.num_categories for one in layout.space.latents})

    def forward(
        self, target: Target, base: Sample, name: str, perturbed: Tensor, cost: Callable[[Sample, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return c(z), shape (P, B), for perturbed logits z (P, B, N, K) of one latent, and a surrogate with its slope.

        Args:
            target: both programs.
            base: the sample in which the latent is made soft.
            name: the name of the latent.
            perturbed: its perturbed logits.
            cost: returns the cost of a soft sample plus the given value of r.
        """
        temperature = self.log_temperature.exp()
        drawn_anew: list[str] = []

        def soften(log_probs: Tensor, noise: Tensor) -> Tensor:
            return torch.softmax(relative_perturbed_logits(log_probs, noise) / temperature, -1)

        def draw_anew(other: str, fn: Any) -> Tensor:
            drawn_anew.append(other)
            value: Tensor = fn.sample().detach()
            return value

        soft = torch.softmax(perturbed / temperature, -1)
        relaxed = target.changed(base, Change(name, soft), soften, draw_anew)
        value = cost(relaxed, self._learned(target, relaxed, name)).expand(perturbed.shape[:2])
        sloping = value
        for other in drawn_anew:
            sloping = sloping + value.detach() * relaxed.q.factors[other].unweighed()
        return value, sloping

    def _learned(self, target: Target, relaxed: Sample, name: str) -> Tensor:
        """Return r of the codes of all latents, scaled and masked like this latent's terms; 0 without a network."""
        if self.network is None:
            return relaxed.codes[name].new_zeros(1, 1)
        codes = {latent.name: relaxed.codes[latent.name] for latent in target.layout.space.latents}
        return relaxed.q.sites[name].weigh(self.network(codes))


def later_terms(drawn: Sample, name: str, without: Collection[str] = ()) -> Tensor:
    """Return the guide's part of a latent's cost: the entropies or -log q of later latents, (R or 1, B or 1)."""
    later = [other for other in drawn.later(name) if other not in without]
    entropies = [site.entropy() for other, site in drawn.q.sites.items() if other in later]
    log_probs = [factor.log_prob for other, factor in drawn.q.factors.items() if other in later]
    return sum(entropies, torch.zeros(1, 1)) - sum(log_probs, torch.zeros(1, 1))


def relative_perturbed_logits(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Add Gumbel noise (P, ..., K) to log pi (..., K), and subtract the largest sum of each latent: at most 0.

    Subtracting one number from all perturbed logits of a latent changes neither their softmax nor their argmax.
    """
    perturbed = log_probs + noise
    return (perturbed - perturbed.amax(-1, keepdim=True)).clamp_min(LOWEST)
