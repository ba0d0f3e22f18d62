"""Sum over the most probable codes of each datum, and sample the others."""

from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from ..distributions.best_codes import add_exits, draw_exits, draw_others, extend, no_digits, no_exits
from ..programs.cells import summed_over
from ..programs.draws import Score
from ..programs.noise import independent
from ..programs.samples import Sample
from ..programs.target import Target
from ..programs.top_codes import TopCodes
from ..runtime.tuning import tuning
from .rows import MOST_SLICES, Rows, SiteEstimate, SiteGradient
from .sampled import Estimate, SampledELBO


@final
class TopC(SampledELBO):
    r"""The ELBO, summed over the C most probable codes of each datum; the other codes are sampled.

    With a set T of the most probable codes under q(z | x), :math:`m = 1 - \sum_{z \in T} q(z | x)`, codes
    :math:`z_1 .. z_M` drawn from q outside of T, and f(z) = log p(x, z) - log q(z | x),

    .. math::

        \nabla \approx \sum_{z \in T} q(z | x) \big[(f(z) - \bar f) \nabla \log q(z | x) + \nabla \log p(x, z)\big]
        + \frac{m}{M} \sum_i \big[(f(z_i) - f_{-i}) \nabla \log q(z_i | x) + \nabla \log p(x, z_i)\big]

    where :math:`\bar f` is the mean of f over the M samples and :math:`f_{-i}` the mean over the samples other than i
    (Liu, Regier, Tripuraneni, Jordan, McAuliffe 2019, "Rao-Blackwellized Stochastic Gradients for Discrete
    Distributions", arXiv 1810.04777; the baseline: Kool et al. 2019). Both baselines have the same mean, so they cancel
    in the sum over all codes.

    Each datum has C + P codes. The number c <= C of codes to sum is chosen for each datum: it minimizes m / M, the
    weight of each of the M = C + P - c samples. So a code is summed if more than one copy of it would be expected among
    the samples. If q is nearly uniform, nothing is summed, and the estimate is that of
    :class:`~pyro_gvae.elbos.score.ReinforceLOO` with C + P samples, whose variance is never less. If C is at least the
    number of all codes, this is the exact ELBO. If m is below rounding, samples have weight 0.

    The gradient of log p(x, z) is taken only at L of the C + P codes, since all of them would be most of the cost. They
    are drawn by systematic sampling with the weights of the sums above as probabilities. The C + P codes are scored
    without a graph. If all codes are summed, all are differentiated.

    Codes are found by `distributions.best_codes`, with a beam of C codes if latents depend on each other. Latents that
    data share, and continuous ones that the guide declares before codes, are drawn first; if one of them needs a score,
    they are drawn P times, and the scores have leave-one-out baselines. Other latents that may depend on codes, and
    codes that may depend on those latents, are drawn for each code.

    *Approximates* the ELBO of the discrete model. *With* C + P decoder calls for each datum, of which L are
    differentiated. *Requires* P >= 2. *Bias*: none.

    Args:
        num_codes: C, the largest number of codes to sum for each datum.
        num_particles: P, the smallest number of samples of the other codes.
        num_paths: L, the number of codes of each datum at which log p(x, z) is differentiated; all if L >= C + P.

    Example:
        >>> from pyro_gvae.models.categorical_vae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> TopC(num_codes=4).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    def __init__(self, *, num_codes: int = 32, num_particles: int = 2, num_paths: int = 2) -> None:
        super().__init__(num_particles=num_particles)
        self.num_codes = num_codes
        self.num_paths = num_paths

    @override
    def estimate(self, target: Target) -> Estimate:
        layout = target.layout
        top = TopCodes(target.runs, layout, target.drawn(1, independent))
        if _scores(top):
            top = TopCodes(target.runs, layout, target.drawn(self.num_particles, independent))
        chosen = _choose(top, self.num_codes, self.num_particles)
        sample = top.sample(chosen.digits)  # (G R, B)
        has_all_paths = chosen.is_whole or self.num_paths >= len(chosen.digits)
        num_rows = top.num_rows * len(chosen.digits)
        log_p = (_log_joint if has_all_paths else _without_graph)(target, sample, num_rows)
        log_q = sample.q.log_prob(sample.codes)
        costs = top.by_case((log_p - log_q).detach().expand(len(log_p), layout.batch_size))  # (R, G B)
        weights = chosen.weights.to(costs.dtype)
        advantages = costs - _baselines(costs, chosen.is_summed)
        scores = _score_function(top, sample).expand(num_rows, layout.batch_size)
        surrogate = (weights * advantages * top.by_case(scores)).sum()
        if has_all_paths:
            surrogate = surrogate + (weights * top.by_case(_path(sample, log_p))).sum()
        else:
            picked = top.sample(chosen.picked(self.num_paths))
            paths = _path(picked, _log_joint(target, picked, top.num_rows * self.num_paths))
            surrogate = surrogate + paths.sum() / self.num_paths
        bounds = (weights * costs).sum(0).reshape(top.num_rows, -1)  # (G, B)
        surrogate = surrogate / top.num_rows
        for score in _scores(top):
            signal = summed_over(bounds, layout.batch_shape, score.own_shape)
            surrogate = surrogate + ((signal - signal.mean(0)) / (top.num_rows - 1) * score.of_each()).sum()
        return Estimate(bounds.mean(0), surrogate)


@final
class TopCGradient(SiteGradient):
    """The gradient of one latent: its most probable codes are summed, and one other is sampled.

    The baseline is the mean cost of the summed codes. The other latents may be treated in any way.

    Args:
        num_codes: C, the largest number of codes to sum for each datum.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        site, like = rows.base.q.sites[name], rows.base.codes[name]
        num_rows, batch_size, num_latents, num_categories = like.shape
        cases = num_rows * batch_size
        log_probs = site.rows().expand_as(like)  # (R, B, N, K)
        of_cases = log_probs.detach().reshape(1, cases, num_latents, num_categories)
        best = extend(no_digits(cases, like.device), of_cases, self.num_codes)
        digits, weights = best.digits, best.log_q.exp()
        if len(digits) < num_categories**num_latents:
            exits = add_exits(no_exits(best), best, of_cases)
            begun = digits.new_zeros(1, cases, 0)
            other = draw_others(begun, best, draw_exits(exits, 1), exits.taken[0], of_cases)
            left = best.mass_left()[-1:]
            left = torch.where(left > torch.finfo(like.dtype).eps, left, 0.0)  # below rounding, codes are arbitrary
            digits, weights = torch.cat([digits, other]), torch.cat([weights, left])
        shared = rows.shared(name, _possible(digits, weights).reshape(-1, num_rows, batch_size, num_latents, 1))
        codes = torch.zeros(*shared.shape[:-1], num_categories).to(like).scatter_(-1, shared, 1.0)  # (m, R, B, N, K)
        weights = rows.shared(name, weights.reshape(-1, num_rows, batch_size, 1, 1)).flatten(2).to(like)  # (m, R, B)
        costs = rows.costs_of(name, codes)
        of_best = slice(None, len(best.digits))
        baseline = (weights[of_best] * costs[of_best]).sum(0) / weights[of_best].sum(0)
        log_q = (codes * log_probs).sum((-2, -1))
        return SiteEstimate((weights * (costs - baseline) * log_q).sum())


class _Chosen(NamedTuple):
    """The codes of each case that are scored: the most probable ones, then samples of others."""

    digits: Tensor  # (R, G B, n)
    weights: Tensor  # (R, G B), which sum to 1: q of a code that is summed; m / M of a sample
    is_summed: Tensor  # (R, G B)
    is_whole: bool  # whether there are no other codes

    @torch.no_grad()
    def picked(self, number: int) -> Tensor:
        """Draw L codes of each case by systematic sampling, with their weights as probabilities: (L, G B, n).

        One number u in [0, 1) determines all draws of a case: the l-th is the code at (u + l) / L of the cumulative
        weights.
        """
        sums = self.weights.cumsum(0)
        places = torch.arange(number, dtype=sums.dtype, device=sums.device).unsqueeze(-1)
        thresholds = (torch.rand_like(sums[:1]) + places) / number * sums[-1]  # (L, G B)
        rows = (sums <= thresholds.unsqueeze(1)).sum(1).clamp_max(len(sums) - 1)
        return self.digits.gather(0, rows.unsqueeze(-1).expand(-1, -1, self.digits.shape[-1]))


@torch.no_grad()
def _choose(top: TopCodes, num_codes: int, num_particles: int) -> _Chosen:
    best = top.most_probable(num_codes)
    if len(best.log_q) == top.num_codes:
        weights = best.log_q.exp()
        return _Chosen(_possible(best.digits, weights), weights, torch.ones_like(weights, dtype=torch.bool), True)
    num_rows = len(best.log_q) + num_particles
    rows = torch.arange(num_rows, device=best.log_q.device).unsqueeze(-1)
    mass = best.mass_left()  # (C + 1, G B)
    weight = torch.where(mass > torch.finfo(top.layout.dtype).eps, mass, 0.0) / (num_rows - rows[: len(mass)])
    of_sample, counts = weight.min(0)  # (G B,): m / M, and how many codes are summed
    others = top.others(best.first(counts), num_rows)
    is_summed = rows < counts
    digits = torch.cat([best.digits, best.digits[:1].expand(num_particles, -1, -1)])
    digits = torch.where(is_summed.unsqueeze(-1), digits, others)
    probs = torch.cat([best.log_q.exp(), best.log_q.new_zeros(num_particles, best.log_q.shape[-1])])
    weights = torch.where(is_summed, probs, of_sample)
    return _Chosen(_possible(digits, weights), weights, is_summed, False)


def _possible(digits: Tensor, weights: Tensor) -> Tensor:
    """Replace codes of weight 0, whose cost may be infinite, by the most probable code."""
    return torch.where((weights > 0).unsqueeze(-1), digits, digits[:1])


def _baselines(costs: Tensor, is_summed: Tensor) -> Tensor:
    """Return the mean of f over samples, (R, G B); for a sample, over the other samples."""
    samples = torch.where(is_summed, 0.0, costs)
    number = (~is_summed).sum(0)
    total = samples.sum(0)
    return torch.where(is_summed, total / number.clamp_min(1), (total - samples) / (number - 1).clamp_min(1))


def _log_joint(target: Target, sample: Sample, num_rows: int) -> Tensor:
    """Return log p(x, z) of all rows, (G R, B)."""
    return target.read(sample.values).log_prob(sample.codes).expand(num_rows, target.layout.batch_size)


@torch.no_grad()
def _without_graph(target: Target, sample: Sample, num_rows: int) -> Tensor:
    """Return log p(x, z) of all rows without a graph, slice by slice."""
    layout = target.layout
    size = max(tuning(layout.device).decoded_rows // layout.batch_size, -(-num_rows // MOST_SLICES), 1)
    rows = [slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]
    return torch.cat([_log_joint(target, sample.part(own), own.stop - own.start) for own in rows])


def _path(sample: Sample, log_p: Tensor) -> Tensor:
    """Return log p(x, z) - log q of the latents that are reparameterized, (G R, B)."""
    if sample.q.factors.keys() <= sample.scored:
        return log_p
    return log_p - sample.q.log_prob(sample.codes, sample.without_path)


def _score_function(top: TopCodes, sample: Sample) -> Tensor:
    """Return log q of the codes and of what is drawn for each without `rsample`; (1, 1) if there is nothing."""
    sites = [site.score(sample.codes) for name, site in sample.q.sites.items() if name not in top.kept]
    factors = [sample.q.factors[name].unweighed() for name in sample.scored - top.kept]
    return sum([*sites, *factors], torch.zeros((1, 1), dtype=top.layout.dtype, device=top.layout.device))


def _scores(top: TopCodes) -> list[Score]:
    """Return the scores of the latents that are drawn before the codes, (G, B) each."""
    sample, shape = top.base, top.layout.batch_shape
    rows = top.num_rows, top.layout.batch_size
    sites = [site for name, site in sample.q.sites.items() if name in top.kept]
    factors = [sample.q.factors[name] for name in sample.values if name in sample.scored & top.kept]
    scores = [Score(site.score(sample.codes).expand(rows), shape, site.own_shape) for site in sites]
    return scores + [Score(factor.unweighed().expand(rows), shape, factor.own_shape) for factor in factors]
