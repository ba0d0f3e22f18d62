"""A second implementation of each published straight-through estimator: the oracle for gradients."""

import torch
import torch.nn.functional as F

from pyro_gvae.distributions.surrogates import (
    KINDS,
    DecoupledSTGumbelSoftmax,
    GappedStraightThrough,
    GumbelRao,
    ReinMaxRao,
)

M = 7

# With given noise: u (..., K) draws D, v (..., K, M) is the noise conditional on D.


def drawn_by(u, logits):
    return F.one_hot((logits.detach() - (-u.log()).log()).argmax(-1), logits.shape[-1]).double()


def vector_jacobian(p, gradient):
    """gradient (diag(p) - p p^T), shape (..., K)."""
    return p * (gradient - (p * gradient).sum(-1, keepdim=True))


def st(logits, t, u, v, gradient):
    soft = (logits / t).softmax(-1)
    return drawn_by(u, logits), torch.autograd.grad(soft, logits, gradient)[0]


def st_gs(logits, t, u, v, gradient):
    soft = ((logits - (-u.log()).log()) / t).softmax(-1)
    return drawn_by(u, logits), torch.autograd.grad(soft, logits, gradient)[0]


def decoupled(logits, t, u, v, gradient):
    forward = logits / 0.7
    hard, found = st_gs(forward, t, u, v, gradient)
    return hard, found / 0.7


def given_argmax(logits, hard, v):
    """logits + g' with g' given its argmax: Paulus et al. 2021, eq. 8; shape (..., K, M)."""
    exponential, total = -v.log(), logits.exp().sum(-1).unsqueeze(-1).unsqueeze(-1)
    of_drawn = exponential.gather(-2, hard.argmax(-1)[..., None, None].expand(*v.shape[:-2], 1, M))
    others = -(exponential / logits.exp().unsqueeze(-1) + of_drawn / total).log()
    return torch.where(hard.unsqueeze(-1) > 0, -of_drawn.log() + total.log(), others)


def rao(logits, t, u, v, gradient, constant_noise=True):
    hard = drawn_by(u, logits)
    perturbed = given_argmax(logits, hard, v)
    if constant_noise:
        perturbed = logits.unsqueeze(-1) + (perturbed - logits.unsqueeze(-1)).detach()
    soft = (perturbed / t).softmax(-2).mean(-1)
    return hard, torch.autograd.grad(soft, logits, gradient)[0]


def gapped(logits, t, u, v, gradient):
    """As in the authors' code: raise D to the maximum, and lower the others until they are the gap below it."""
    hard, largest = drawn_by(u, logits), logits.detach().amax(-1, keepdim=True)
    raised = (largest - logits.detach()) * hard
    lowered = (logits.detach() - largest + 1.0).clamp(min=0.0) * (1 - hard)
    soft = ((logits + raised - lowered) / t).softmax(-1)
    return hard, torch.autograd.grad(soft, logits, gradient)[0]


def heun(logits, t, u, v, gradient):
    """As in the authors' code: the vector-Jacobian products, without autograd."""
    hard = drawn_by(u, logits)
    midpoint = (hard + (logits / t).softmax(-1)) / 2
    found = 2 * vector_jacobian(midpoint, gradient) - vector_jacobian(logits.softmax(-1), gradient) / 2
    return hard, found.detach()


def heun_rao(logits, t, u, v, gradient):
    hard = drawn_by(u, logits)
    soft = (given_argmax(((hard + logits.softmax(-1)) / 2).log(), hard, v) / t).softmax(-2)  # (..., K, M)
    mean = torch.stack([vector_jacobian(soft[..., m], gradient) / t for m in range(M)]).mean(0)
    return hard, (2 * mean - vector_jacobian(logits.softmax(-1), gradient) / 2).detach()


FORMULAS = {
    "straight-through": (KINDS["straight-through"], st),
    "st-gumbel-softmax": (KINDS["st-gumbel-softmax"], st_gs),
    "decoupled-st-gumbel-softmax": (DecoupledSTGumbelSoftmax(0.7), decoupled),
    "gumbel-rao": (GumbelRao(M), rao),
    "gapped-straight-through": (GappedStraightThrough(1.0), gapped),
    "reinmax": (KINDS["reinmax"], heun),
    "reinmax-rao": (ReinMaxRao(M), heun_rao),
}
