"""The gradient that estimates are compared with: exact, or the mean of many unbiased estimates, with its error."""

import itertools
from collections.abc import Callable, Sequence
from typing import final

import torch

from .. import exact
from ..config.names import EstimatorName
from ..estimators import Estimator, with_free_bits, with_kl_weight, with_unimix, with_usage_entropy
from ..estimators.claims import Detail, FreeNats, MixedGuide, RewardedUse, WeightedKL
from ..runtime.rng import seeded
from .candidates import Candidate
from .moments import Moments, Reference, gather
from .probe import Probe, Problem, Term, Wrt, is_deterministic, parameters

#: If the exact gradient is not available, the mean of an unbiased estimator replaces it: the first of these that can
#: be measured, from the least to the most noisy.
LEAST_NOISY: tuple[EstimatorName, ...] = (
    "local-expectation",
    "reinforce-loo",
    "relax",
    "rebar",
    "reinforce-baseline",
    "reinforce",
)


def obstacle_to_sums(
    problem: Problem, most_operations: float, max_memory: float | None, *, seed: int = 0
) -> str | None:
    """Return why the codes cannot be summed over, or None if they can."""
    try:
        with seeded(seed):
            parameters(problem)  # creates those that Pyro's store lacks, the guide's first
            with problem.opened():
                cost = exact.sum_cost(problem.pair, problem.x, max_memory=max_memory)
    except ValueError as refusal:
        return str(refusal).split("\n")[0]
    if cost.operations <= most_operations:
        return None
    return f"One exact gradient sums over {cost.num_codes:,} codes, which takes about {cost.seconds:.2g} seconds."


def exact_reference(problem: Problem, chosen: Estimator, wrt: Wrt, *, term: Term = "elbo", seed: int = 0) -> Reference:
    """Compute the gradient of the exact ELBO, or of its reconstruction term alone."""
    with seeded(seed):
        return Reference(Probe(problem, chosen, wrt=wrt, term=term)()[0])


def sample_moments(
    problem: Problem,
    chosen: Estimator,
    *,
    reference: Reference | None,
    num_samples: int,
    num_groups: int,
    wrt: Wrt = "logits",
    term: Term = "elbo",
    seed: int = 0,
    vectorize: bool = True,
) -> Moments:
    """Draw seeded estimates of a gradient and return their sums."""
    with seeded(seed):
        probe = Probe(problem, chosen, wrt=wrt, term=term, vectorize=vectorize)
        first = probe()
        against = torch.full_like(first[0], torch.nan) if reference is None else reference.gradient
        blocks = itertools.chain([first], map(probe, _parts(num_samples - 1, probe.most_repeats)))
        return gather(blocks, against, num_samples=num_samples, num_groups=num_groups)


@final
class References:
    """The reference of each estimator: the gradient of the ELBO with the same weight of its KL and the same free bits.

    Each is computed once, when it is first needed, by the first unbiased estimator that accepts the problem and has an
    error smaller than the gradient. It is exact if that estimator is deterministic, and otherwise the mean of many of
    its estimates; `name` and `squared_error` of the reference tell which.

    Args:
        problem: the program and its data.
        wrt: "logits" or "parameters".
        truths: unbiased estimators of the ELBO, from the best to the worst.
        count: returns how many estimates to take of an estimator that samples; 0 to do without it.
        seed: seed of the samples.
        vectorize: see :class:`~pyro_gvae.diagnostics.probe.Probe`.
    """

    def __init__(
        self,
        problem: Problem,
        wrt: Wrt,
        truths: Sequence[Candidate],
        *,
        count: Callable[[Candidate], int],
        seed: int = 0,
        vectorize: bool = True,
    ) -> None:
        self._problem = problem
        self._wrt = wrt
        self._truths = truths
        self._count = count
        self._seed = seed
        self._vectorize = vectorize
        self._known: list[tuple[tuple[Detail, ...], Reference | None]] = []

    def __call__(self, chosen: Estimator) -> Reference | None:
        """Return the reference of an estimator, or None if there is none."""
        details = tuple(
            one for one in chosen.details if isinstance(one, WeightedKL | FreeNats | MixedGuide | RewardedUse)
        )
        for known, found in self._known:
            if known == details:
                return found
        found = self._find(details)
        self._known.append((details, found))
        return found

    def _find(self, details: tuple[Detail, ...]) -> Reference | None:
        for truth in self._truths:
            try:
                found = self._measured(_with_details(truth.make(), details), truth)
            except ValueError:
                continue
            if found is None:
                continue
            if found.squared_error < found.squared_norm or found.squared_error == 0:
                return found._replace(name=found.name + "".join(map(str, details)))
        return None

    def _measured(self, truth: Estimator, candidate: Candidate) -> Reference | None:
        if is_deterministic(self._problem, truth):
            return exact_reference(self._problem, truth, self._wrt, seed=self._seed)
        count = self._count(candidate)
        if not count:
            return None
        found = sample_moments(
            self._problem,
            truth,
            reference=None,
            num_samples=count,
            num_groups=1,
            wrt=self._wrt,
            seed=self._seed + 1,
            vectorize=self._vectorize,
        )
        error = float(found.variance.sum()) / count  # if noise exceeds the gradient, its direction is unknown
        return Reference(found.mean.to(found.total.dtype), error, f"the mean of {count} estimates by {truth.name}")


def _with_details(truth: Estimator, details: tuple[Detail, ...]) -> Estimator:
    """Return an estimator of the ELBO for the objective with these details."""
    for detail in details:
        match detail:
            case WeightedKL(beta):
                truth = with_kl_weight(truth, beta)
            case MixedGuide(share):
                truth = with_unimix(truth, share)
            case RewardedUse(weight):
                truth = with_usage_entropy(truth, weight)
            case FreeNats(nats):
                truth = with_free_bits(truth, dict(nats) if isinstance(nats, tuple) else nats)
    return truth


def _parts(total: int, most: int) -> list[int]:
    """Split a number into nearly equal parts of at most `most`, since equal shapes share one plan.

    Example:
        >>> _parts(10, 4)
        [4, 3, 3]
    """
    number = -(-total // most)
    return [total // number + (i < total % number) for i in range(number)]
