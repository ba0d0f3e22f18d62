"""Estimators that sum over all K^N joint codes."""

from typing import Any

from ..elbos.exact import ExactELBO, ExactEvidence
from ..elbos.mixture import WakeMixture
from ..elbos.wake import ExactWake
from ..exact.wake import Encoder, Exclusive, Inclusive
from ..runtime.distributed import ALONE, Share
from .base import Estimator, Summed
from .claims import Bias, EvidenceShare, Objective


def exact(*, max_memory: float | None = None, slice_size: int | None = None, share: Share = ALONE) -> Estimator:
    """The ELBO of the discrete model, summed over all K^N joint codes.

    *Approximates* nothing: the sum is exact. *With* one decoder call for each code and one matrix product for all data.
    *Requires* a number of joint codes that can be summed in the time available; `max_memory` bounds the memory. Latents
    may be any number of one-hots, bits and integers, and continuous ones with `rsample`, which are drawn. Chains in
    `pyro.markov` and latents that only the model has are summed one after another. *Bias*: none, and no variance but
    that of continuous latents.

    Args:
        max_memory: bytes that a slice of codes may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Example:
        >>> exact(slice_size=1000).is_exact
        True
    """
    return Estimator(
        name="exact",
        elbo=lambda: ExactELBO(max_memory=max_memory, slice_size=slice_size, share=share),
        objective=Objective.ELBO,
        bias=Bias.NONE,
        reference="enumeration; Jang et al. 2017, section 4.3, arXiv 1611.01144",
        is_exact=True,
        at_site=Summed(max_memory, slice_size) if share == ALONE else None,
    )


def exact_evidence(
    *, max_memory: float | None = None, slice_size: int | None = None, share: Share = ALONE
) -> Estimator:
    """log p(x) of the discrete model, summed over all K^N joint codes; the guide gets no gradient.

    *Approximates* nothing: the sum is exact. *With* two passes over the codes, in bounded memory. *Requires* a number
    of joint codes that can be summed in the time available, and latents that are all discrete, in nested plates if in
    several. *Bias*: none, and no variance.

    Args:
        max_memory: bytes that a slice of codes may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Example:
        >>> exact_evidence().approximates
        'the log-evidence of the discrete model'
    """
    return Estimator(
        name="exact-evidence",
        elbo=lambda: ExactEvidence(max_memory=max_memory, slice_size=slice_size, share=share),
        objective=Objective.EVIDENCE,
        bias=Bias.NONE,
        reference="enumeration",
        is_exact=True,
    )


def exact_wake(
    *,
    encoder: str = "exclusive",
    evidence_weight: float = 1.0,
    max_memory: float | None = None,
    slice_size: int | None = None,
    share: Share = ALONE,
) -> Estimator:
    """log p(x) for the model, and a KL for the guide, both summed over all K^N joint codes.

    *Approximates* nothing: the sum is exact. *With* one decoder call for each code: the model gets the gradient of log
    p(x), and the guide, from the same table of codes, that of the ELBO, which is KL(q(z | x) || p(z | x)), or that of
    KL(p(z | x) || q(z | x)), the exact wake phase of reweighted wake-sleep (Bornschein and Bengio 2015, arXiv
    1406.2751; Le et al. 2019, arXiv 1805.10469). The loss is -log p(x). *Requires* what `exact-evidence` requires, and
    is best as a last stage: a model that is trained by log p(x) from the start has a posterior that is far from any
    factorized guide. An `evidence_weight` w below 1 keeps it nearer: model and guide get a weighted mean of these
    gradients and those of `exact`, and the codes are summed twice (:class:`~pyro_gvae.elbos.mixture.WakeMixture`).
    *Bias*: none, and no variance.

    Args:
        encoder: the KL of the guide, "exclusive" or "inclusive".
        evidence_weight: w; the ELBO has the weight 1 - w.
        max_memory: bytes that a slice of codes may take; 4 GB if None.
        slice_size: codes in a slice; the largest that is fast and fits into `max_memory` if None.
        share: which codes this process sums, if several processes divide them.

    Returns:
        The estimator, to be bound to a program by `bind`.

    Raises:
        ValueError: if `encoder` is unknown, or `evidence_weight` is not between 0 and 1.

    Example:
        >>> exact_wake(encoder="inclusive").approximates
        'the log-evidence of the discrete model, and the inclusive KL for the guide'
    """
    encoders: dict[str, tuple[Encoder, Objective]] = {
        "exclusive": (Exclusive(), Objective.EVIDENCE_AND_EXCLUSIVE_KL),
        "inclusive": (Inclusive(), Objective.EVIDENCE_AND_INCLUSIVE_KL),
    }
    if encoder not in encoders:
        raise ValueError(f"Expected encoder to be one of {', '.join(encoders)}, but found '{encoder}'.")
    chosen, objective = encoders[encoder]

    def loss() -> ExactWake | WakeMixture:
        limits: dict[str, Any] = {"max_memory": max_memory, "slice_size": slice_size, "share": share}
        wake = ExactWake(chosen, **limits)
        return wake if evidence_weight == 1 else WakeMixture(wake, ExactELBO(**limits), evidence_weight)

    loss()  # refuses a weight that is out of range
    return Estimator(
        name="exact-wake",
        elbo=loss,
        objective=objective,
        details=() if evidence_weight == 1 else (EvidenceShare(evidence_weight),),
        bias=Bias.NONE,
        reference="enumeration; Bornschein and Bengio 2015, arXiv 1406.2751; Le et al. 2019, arXiv 1805.10469",
        is_exact=True,
    )
