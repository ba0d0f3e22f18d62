"""The lowest layer alone: the same data, posterior and guide as all layers together."""

import pytest
import torch

from pyro_gvae import CategoricalVAE, exact
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.report import layers
from pyro_gvae.report.layers import lowest_layer

X = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]).double()


@pytest.mark.parametrize(("num_layers", "at_a_time"), [(1, 1024), (2, 1024), (3, 4)])
def test_the_lowest_layer_has_the_posterior_of_all(num_layers, at_a_time, monkeypatch):
    monkeypatch.setattr(layers, "AT_A_TIME", at_a_time)
    torch.manual_seed(0)
    vae = HierarchicalCategoricalVAE(4, num_layers=num_layers, num_latents=2, num_categories=3, hidden=(5,)).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(torch.randn_like(parameter))
    lowest = lowest_layer(vae)
    found, whole = exact.bounds(lowest, X), exact.bounds(vae, X)
    torch.testing.assert_close(found.log_evidence, whole.log_evidence)
    assert (found.elbo >= whole.elbo - 1e-9).all()
    marginals = exact.posterior(vae, X).marginals
    of_lowest = marginals["z1"] if isinstance(marginals, dict) else marginals
    torch.testing.assert_close(exact.posterior(lowest, X).marginals, of_lowest)


def test_other_programs_are_left_alone_and_many_codes_are_refused():
    vae = CategoricalVAE(4, 2, 3, (5,))
    assert lowest_layer(vae) is vae
    large = HierarchicalCategoricalVAE(4, num_layers=2, num_latents=15, num_categories=2, hidden=(5,))
    with pytest.raises(ValueError, match=r"at most 16,384 joint codes in each layer, .* but found 2\^15"):
        lowest_layer(large)
