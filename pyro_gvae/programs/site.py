"""The log-probabilities of a discrete latent's categories at given joint codes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor

from ..distributions.coupled import CodePrior
from .latents import Latent

#: One-hots of each latent, by its name: (s, N, K) if all data have the same codes, else (P, B, N, K).
Codes = Mapping[str, Tensor]


class Site(NamedTuple):
    """The log-probabilities of a discrete latent's categories.

    Attributes:
        latent: its name and form.
        log_probs: (B or 1, N, K), or (s, B or 1, N, K) if they depend on the codes of other latents.
        batch_shape: the batch shape of all discrete latents together.
        own_shape: the same with 1 where data share the latent.
        scale: one number, or one for each element of the batch shape, with a leading s if it depends on codes.
        mask: None, or of a shape that the scale may have.
        scales: one number, or the least and the largest scale in each cell, (2, B), NaN elsewhere.
        prior: a prior that couples the digits: `log_probs` are then uniform, and a factor `coupling_of(name)` is the
            rest.
    """

    latent: Latent
    log_probs: Tensor
    batch_shape: Size
    own_shape: Size
    scale: float | Tensor
    mask: bool | Tensor | None
    scales: float | Tensor = 1.0
    prior: CodePrior | None = None

    @property
    def depends(self) -> bool:
        """Whether its log-probabilities, its scale or its mask depend on the codes of other latents."""
        return self.log_probs.dim() == 4

    @property
    def weight_depends(self) -> bool:
        """Whether its scale or its mask depends on the codes of other latents."""
        own = len(self.batch_shape)
        return any(isinstance(values, Tensor) and values.dim() > own for values in (self.scale, self.mask))

    @property
    def share(self) -> float:
        """The fraction of the latent that counts for each datum, less than 1 if several data share it."""
        return self.own_shape.numel() / self.batch_shape.numel()

    @property
    def is_closed(self) -> bool:
        """Whether it depends on no other latent, and its mean log-probability under independent digits is known."""
        return not self.depends and (self.prior is None or self.prior.has_mean)

    def score(self, codes: Codes) -> Tensor:
        """Return the log-probability (s, B or 1) of codes in nats, without coupling, scale and mask."""
        own = codes[self.latent.name]
        if own.dim() == 4:
            return (own * self.log_probs).sum((-2, -1))
        if self.depends:
            return (own.unsqueeze(1) * self.log_probs).sum((-2, -1))
        return own.flatten(1) @ self.log_probs.flatten(1).T

    def digit_scores(self, codes: Codes) -> Tensor:
        """Return the log-probability of each digit of codes, (s, B or 1, N), neither scaled nor masked, in nats."""
        own = codes[self.latent.name]
        return ((own if own.dim() == 4 else own.unsqueeze(1)) * self.log_probs).sum(-1)

    def weigh(self, per_datum: Tensor) -> Tensor:
        """Apply the latent's scale and mask to values (..., B), and divide them among the data that share it."""
        others = per_datum.shape[:-1]
        per_datum = per_datum.expand(*others, self.batch_shape.numel()).reshape((*others, *self.batch_shape))
        weighed: Tensor = scale_and_mask(per_datum, self.scale, self.mask)
        others = weighed.shape[: weighed.dim() - len(self.batch_shape)]
        return (weighed if self.share == 1 else weighed * self.share).reshape(*others, -1)

    @property
    def weight(self) -> Tensor:
        """The weight of the latent for each datum, which is scale times mask, divided among data that share it.

        Its shape is (B,), or (s, B) if scale or mask depend on the codes of other latents.
        """
        return self.weigh(self.log_probs.new_ones(self.batch_shape.numel()))

    def entropy(self) -> Tensor:
        """Return the entropy given the codes of other latents, scaled and masked: (B,), or (s, B) if it depends."""
        return self.weigh(-(self.log_probs.exp() * self.log_probs).sum((-2, -1)))

    def by_cell(self, values: Tensor) -> Tensor:
        """Sum values (s, B, N, K) over the data that share the latent: ``(s, *own_shape, N, K)``."""
        event = values.shape[-2:]
        return values.reshape(len(values), *self.batch_shape, *event).sum_to_size(len(values), *self.own_shape, *event)

    def rows(self) -> Tensor:
        """Return the log-probabilities with all their axes: (s or 1, B, N, K)."""
        log_probs = self.log_probs if self.depends else self.log_probs.unsqueeze(0)
        return log_probs.expand(-1, self.batch_shape.numel(), -1, -1)

    def at(self, rows: Tensor) -> Self:
        """Select rows (r,), possibly repeated, of everything that depends on the codes."""
        if not self.depends:
            return self
        return self._replace(
            log_probs=self.log_probs.index_select(0, rows),
            scale=self._rows_of(self.scale, rows),
            mask=self._rows_of(self.mask, rows),
        )

    def _rows_of(self, values: Any, rows: Tensor) -> Any:
        has_rows = isinstance(values, Tensor) and values.dim() > len(self.batch_shape)
        return values.index_select(0, rows) if has_rows else values

    @classmethod
    def stacked(cls, sites: Sequence["Site"]) -> "Site":
        """Concatenate what runs on one code each have said of a latent."""
        first = sites[0]
        return first._replace(
            log_probs=torch.cat([site.rows() for site in sites]),
            scale=_one_below_another([site.scale for site in sites], first.batch_shape),
            mask=_one_below_another([site.mask for site in sites], first.batch_shape),
        )


def _one_below_another(values: Sequence[Any], batch_shape: Size) -> Any:
    """Return scales or masks of several runs with an axis of runs, or one of them if they are all equal."""
    first = values[0]
    if all(value is first for value in values):
        return first
    tensors = [torch.as_tensor(True if value is None else value) for value in values]
    if all(tensor.shape == tensors[0].shape and torch.equal(tensor, tensors[0]) for tensor in tensors):
        return first
    return torch.stack([tensor.expand(batch_shape) for tensor in tensors])
