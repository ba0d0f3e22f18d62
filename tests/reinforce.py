"""The plain score-function estimator in its simplest form, as a row like those of the registry."""

from dataclasses import replace

from pyro_gvae.elbos.sampled import Estimate, SampledELBO
from pyro_gvae.estimators import estimator


class Reinforce(SampledELBO):
    """The plain score-function estimator with one sample."""

    def estimate(self, target):
        draws = target.draw(self.num_particles)
        bound = draws.log_joint - draws.log_q
        return Estimate(bound.mean(0), (bound.detach() * draws.log_q + bound).mean(0).sum())


def row(name, elbo):
    return replace(estimator("exact"), name=name, elbo=elbo, is_exact=False)


REINFORCE = row("reinforce", Reinforce)
