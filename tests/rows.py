"""A table with a column of each kind, and its scores cell by cell with torch's distributions."""

import math

import pyro.distributions as dist
import torch

from pyro_gvae.models.table import Column, TableObservation

COLUMNS = [
    Column("kind", "categorical", ("r", "g", "b")),
    Column("age", "real", (), 5.0, 2.0),
    Column("sex", "binary", ("f", "m")),
    Column("visits", "count", (), 1.0, 0.7),
    Column("income", "positive", (), 1.0, 0.5),
    Column("site", "categorical", ("x", "y")),
]
D = len(COLUMNS)


def observation(dtype=torch.float64):
    torch.manual_seed(0)
    found = TableObservation(COLUMNS).to(dtype)
    torch.nn.init.normal_(found.log_scale)
    torch.nn.init.normal_(found.log_dispersion)
    return found


def rows(number, *, share_missing=0.3):
    built = observation()
    x = built(torch.randn(number, built.natural_dim(D), dtype=torch.float64)).sample()
    x[torch.rand(x.shape) < share_missing] = math.nan
    return x


def cell(built, column, natural):
    """Return the distribution of a column's values, and the map from cells to values; `natural` is in block order."""
    scale = (built.log_scale.mul(2).exp() + 1e-4).sqrt()
    match column.name:
        case "sex":
            return dist.Bernoulli(logits=natural[..., 0]), lambda x: x
        case "kind":
            return dist.Categorical(logits=natural[..., 1:4]), lambda x: x
        case "site":
            return dist.Categorical(logits=natural[..., 4:6]), lambda x: x
        case "age":
            return dist.Normal(5.0 + 2.0 * natural[..., 6], 2.0 * scale[0]), lambda x: 5.0 + 2.0 * x
        case "income":
            normal = dist.LogNormal(1.0 + 0.5 * natural[..., 7], 0.5 * scale[1])
            return normal, lambda x: (1.0 + 0.5 * x).exp()
    mean, dispersion = (1.0 + natural[..., 8]).exp(), built.log_dispersion[0].exp()
    return dist.NegativeBinomial(dispersion, probs=mean / (mean + dispersion)), lambda x: x


def brute_force(built, natural, x):
    total = 0.0
    for place, column in enumerate(COLUMNS):
        values = x[..., place]
        family, value = cell(built, column, natural)
        there = torch.where(values.isnan(), 1.0, value(values))  # 1 is a valid value for all of them
        total = total + torch.where(values.isnan(), 0.0, family.log_prob(there))
    return total
