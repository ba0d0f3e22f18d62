"""Score joint codes by model and guide: the weight of each code under the guide, and the terms that it weights.

A factor without the axis of the codes is counted once. Latents that depend on no other have a KL in closed form.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

import torch
from torch import Size, Tensor
from torch.distributions import kl_divergence

from ..handlers.sites import Run
from .draws import Score
from .factors import Factor, Layout, Reading, add
from .look import Look, is_continuous
from .runs import Runs
from .shared import apart, common_scale
from .site import Codes, Site
from .statements import read, sites_of


class Guide(NamedTuple):
    """The part of the guide that does not depend on codes.

    Attributes:
        sites: discrete latents that do not depend on the codes of others; their part of a KL is in closed form.
        values: one draw, for all codes, of continuous latents that do not depend on codes.
        log_q: the log-density (1, B) of these values, scaled and masked, or None if there are none. It has no gradient
            for scored latents, and omits latents whose KL is in closed form.
        factors: the factors of these values.
        depends: whether the guide has to be run on codes for anything else.
    """

    sites: dict[str, Site]
    values: dict[str, Tensor]
    log_q: Tensor | None
    factors: dict[str, Factor]
    depends: bool = True

    def tensors(self) -> list[Tensor]:
        """Return the tensors that sums over codes read."""
        log_q = [] if self.log_q is None else [self.log_q]
        return [*(site.log_probs for site in self.sites.values()), *self.values.values(), *log_q]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """Return the same guide with :meth:`tensors` replaced by others."""
        rest = iter(tensors)
        return self._replace(
            sites={name: site._replace(log_probs=next(rest)) for name, site in self.sites.items()},
            values={name: next(rest) for name in self.values},
            log_q=None if self.log_q is None else next(rest),
        )


#: Nothing of the guide is kept, so it runs on each slice of codes.
NOTHING_KEPT = Guide({}, {}, None, {})
#: Nothing of the guide is kept, and it does not run on codes, since they do not change it.
NEVER_RUN = NOTHING_KEPT._replace(depends=False)


def read_guide_once(runs: Runs, layout: Layout, seen: Look | None = None) -> Guide:
    """Run the guide once, and keep what does not depend on codes.

    Args:
        runs: the pair with its data bound.
        layout: what is known of it.
        seen: a first look at it. If this has said all, and no gradient is asked for, the guide is not run again.
    """
    if layout.obstacle is not None:
        return NOTHING_KEPT
    if seen is not None and seen.says_all and not torch.is_grad_enabled():
        return Guide(sites_of(seen.guide, layout), {}, None, {}, depends=False)
    found = read(runs.guide, layout, layout.some_codes(layout.few()[0]), {})
    constant = {name: factor for name, factor in found.factors.items() if len(factor.log_prob) == 1}
    sampled = [_log_q(factor) for name, factor in constant.items() if name not in layout.analytic]
    return Guide(
        sites={name: site for name, site in found.sites.items() if not site.depends},
        values={name: value for name, value in found.values.items() if name in constant},
        log_q=add(sampled) if sampled else None,
        factors=constant,
        depends=found.depends,
    )


def _log_q(factor: Factor) -> Tensor:
    """Return the log-density of a continuous latent. The gradient of a scored one has mean zero and is left out."""
    return factor.log_prob.detach() if factor.is_scored else factor.log_prob


class Terms(NamedTuple):
    """The terms that a slice of codes adds to the ELBO.

    Attributes:
        log_weights: log q of the codes (s, B or 1), neither scaled nor masked.
        table: the terms to weight by q (s, B), scaled and masked.
        constant: the other terms, (B,): the same in every slice, to be counted once.
        scores: the scores of scored latents that are drawn for each code.
    """

    log_weights: Tensor
    table: Tensor
    constant: Tensor | None
    scores: tuple[Score, ...] = ()


class JointScores(NamedTuple):
    """The values of log p(x, z) and log p(z) for a slice of codes."""

    joint: Tensor  # (s, B): log p(x, z), masked, not scaled
    scale: float | Tensor  # of all statements, outside of a sum over codes: one number, or that of each datum (B,)
    prior: Tensor  # (s, B or 1): log p(z), neither masked nor scaled


def elbo_terms(runs: Runs, layout: Layout, guide: Guide, codes: Codes) -> Terms:
    """Run both programs on joint codes, and return the terms that these add to the ELBO."""
    return _stacked([_elbo_terms(layout, guide, *found) for found in read_both(runs, layout, guide, codes)])


def guide_terms(runs: Runs, layout: Layout, guide: Guide, codes: Codes) -> Terms:
    """Return :func:`elbo_terms`, with the model held constant."""
    both = read_both(runs, layout, guide, codes)
    return _stacked([_elbo_terms(layout, guide, found.codes, found.q, found.p.detached()) for found in both])


def joint_scores(model: Run, layout: Layout, codes: Codes) -> JointScores:
    """Run the model on joint codes, and return log p(x, z)."""
    return _joined([_joint_scores(layout, part, read(model, layout, part, {})) for part in pieces(layout, codes)])


class PairScores(NamedTuple):
    """The log-densities of codes z at given values of the continuous latents c."""

    log_p: Tensor  # (s, B): log p(x, z, c), masked, not scaled
    log_q: Tensor  # (s, B): log q(z, c | x), likewise
    cells: Size  # the batch shape of all discrete latents, with 1 where data share a continuous latent
    scale: float | Tensor  # of all statements: one number, or that of each cell


def pair_scores(runs: Runs, layout: Layout, codes: Codes, values: Mapping[str, Tensor]) -> PairScores:
    """Run both programs on joint codes and given values of their continuous latents.

    Raises:
        ValueError: if data share a discrete latent, or statements are scaled differently.
    """
    parts = [_pair_scores(runs, layout, part, values) for part in pieces(layout, codes)]
    return parts[0]._replace(
        log_p=torch.cat([part.log_p for part in parts]), log_q=torch.cat([part.log_q for part in parts])
    )


def _pair_scores(runs: Runs, layout: Layout, codes: Codes, values: Mapping[str, Tensor]) -> PairScores:
    q, p = (read(program, layout, codes, values) for program in (runs.guide, runs.model))
    cells = apart(layout, q)
    scale = common_scale([one.scales for one in (*q.statements(), *p.statements())], layout.batch_shape, cells)
    log_p, log_q = (_log_densities(layout, codes, reading)[0] for reading in (p, q))
    return PairScores(log_p, log_q, cells, scale)


def terms_and_scores(runs: Runs, layout: Layout, guide: Guide, codes: Codes) -> tuple[Terms, JointScores]:
    """Return :func:`elbo_terms`, with the model held constant, and :func:`joint_scores` from the same run of it."""
    both = read_both(runs, layout, guide, codes)
    terms = _stacked([_elbo_terms(layout, guide, found.codes, found.q, found.p.detached()) for found in both])
    return terms, _joined([_joint_scores(layout, found.codes, found.p) for found in both])


def log_q_and_scores(runs: Runs, layout: Layout, guide: Guide, codes: Codes) -> tuple[Tensor, JointScores]:
    """Return log q(z | x), (s, B), scaled and masked, and :func:`joint_scores`."""
    both = read_both(runs, layout, guide, codes)
    log_q = [found.q._replace(sites=found.q.sites | guide.sites).log_prob(found.codes) for found in both]
    return torch.cat(log_q), _joined([_joint_scores(layout, found.codes, found.p) for found in both])


class Both(NamedTuple):
    """The readings of guide and model at the same codes."""

    codes: Codes
    q: Reading  # empty if the guide does not depend on codes
    p: Reading


def read_both(runs: Runs, layout: Layout, guide: Guide, codes: Codes) -> list[Both]:
    """Run both programs on joint codes: on all at once, or on one after another if there is an obstacle."""
    found = []
    for part in pieces(layout, codes):
        q = read(runs.guide, layout, part, guide.values) if guide.depends else Reading({}, {}, {})
        found.append(Both(part, q, read(runs.model, layout, part, guide.values | q.values)))
    return found


def pieces(layout: Layout, codes: Codes) -> list[Codes]:
    """Return codes as programs take them: all at once, or one after another if there is an obstacle."""
    if layout.obstacle is None:
        return [codes]
    return [{name: own[row : row + 1] for name, own in codes.items()} for row in range(count(codes))]


def count(codes: Codes) -> int:
    """Return the number of rows of codes."""
    return len(next(iter(codes.values()))) if codes else 1  # without latents there is one code


def _stacked(parts: list[Terms]) -> Terms:
    if len(parts) == 1:
        return parts[0]
    weights, table, _, scores = zip(*parts, strict=True)  # with several parts, no term is constant
    return Terms(torch.cat(weights), torch.cat(table), None, tuple(map(_one_score, zip(*scores, strict=True))))


def _one_score(parts: tuple[Score, ...]) -> Score:
    return parts[0]._replace(log_q=torch.cat([part.log_q for part in parts]))


def _joined(parts: list[JointScores]) -> JointScores:
    if len(parts) == 1:
        return parts[0]
    joint, scales, prior = zip(*parts, strict=True)
    return JointScores(torch.cat(joint), scales[0], torch.cat(prior))


def _elbo_terms(layout: Layout, guide: Guide, codes: Codes, q: Reading, p: Reading) -> Terms:
    q_sites = q.sites | guide.sites
    table = [factor.log_prob for name, factor in p.factors.items() if name not in layout.analytic]
    constant = []
    for name, site in p.sites.items():
        if name in guide.sites and not site.depends:
            constant.append(site.weigh((guide.sites[name].log_probs.exp() * site.log_probs).sum((-2, -1))))
        else:
            table.append(site.weigh(site.score(codes)))
    for name, site in q_sites.items():
        if name in guide.sites:
            constant.append(-site.weigh((site.log_probs.exp() * site.log_probs).sum((-2, -1))))
        else:
            table.append(-site.weigh(site.score(codes)))
    drawn = {name: factor for name, factor in q.factors.items() if name not in guide.values}
    table += [-_log_q(factor) for name, factor in drawn.items() if name not in layout.analytic]
    if guide.log_q is not None:
        constant.append(-guide.log_q.squeeze(0))
    for name in sorted(layout.analytic):
        kl = p.factors[name].weigh(kl_divergence((guide.factors | drawn)[name].fn, p.factors[name].fn))
        table.append(-kl)
    rows = count(codes), layout.batch_size
    return Terms(
        log_weights=add([site.score(codes) for site in q_sites.values()]) if q_sites else table[0].new_zeros(1, 1),
        table=add(table).expand(rows[0], -1),
        constant=add(constant) if constant else None,
        scores=tuple(
            Score(factor.unweighed().expand(rows), layout.batch_shape, factor.own_shape)
            for factor in drawn.values()
            if factor.is_scored
        ),
    )


def _joint_scores(layout: Layout, codes: Codes, found: Reading) -> JointScores:
    refuse_continuous(found)
    scale = common_scale([one.scales for one in found.statements()], layout.batch_shape, layout.batch_shape)
    joint, prior = _log_densities(layout, codes, found)
    return JointScores(joint, scale, prior)


def _log_densities(layout: Layout, codes: Codes, found: Reading) -> tuple[Tensor, Tensor]:
    """Return the log-density of codes and all other statements, and that of codes alone: (s, B), masked, not scaled."""
    for name, site in found.sites.items():
        if site.share != 1:
            raise ValueError(
                f"Expected every discrete latent to be inside of the plate(s) {sorted(layout.plates)}, but found "
                f"'{name}', which several data share, so that no datum has its own table of codes. Try "
                "exact.log_evidence, which sums nested plates from the innermost one, or importance_weighted."
            )
    of_codes = [found.score_of(name, codes) for name in found.sites]
    priors = add(of_codes) if of_codes else torch.zeros((1, 1), dtype=layout.dtype, device=layout.device)
    others = [factor.unscaled() for factor in found.others().values()]
    joint = add(others) + priors if others else priors
    return joint.expand(count(codes), layout.batch_size), priors


def refuse_continuous(found: Reading) -> None:
    """Refuse a model with a continuous latent."""
    for name in found.values:
        raise is_continuous(name)
