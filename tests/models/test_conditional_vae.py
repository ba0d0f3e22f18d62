"""p(x | y) with a discrete code: brute force over all codes in float64, for images and for tables."""

import itertools
import math

import pytest
import torch
from rows import COLUMNS, observation, rows

from pyro_gvae import exact
from pyro_gvae.evaluate.generate import sample
from pyro_gvae.evaluate.impute import impute
from pyro_gvae.models.conditional_vae import ConditionalVAE
from pyro_gvae.models.table import TableObservation

C, N, K, B, D = 3, 2, 3, 6, 5
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def images():
    torch.manual_seed(0)
    return ConditionalVAE(D, C, N, K, (7,)).double(), torch.rand(B, D, dtype=torch.float64).round()


def table():
    torch.manual_seed(0)
    vae = ConditionalVAE(len(COLUMNS), C, N, K, (7,), observation=TableObservation(COLUMNS)).double()
    vae.observation.load_state_dict(observation().state_dict())
    return vae, rows(B)


def strong(vae):
    with torch.no_grad():
        for network in (vae.encoder, vae.decoder):
            for parameter in network.parameters():
                parameter.mul_(3)
    return vae


def codes():
    return [torch.eye(K, dtype=torch.float64)[list(digits)] for digits in itertools.product(range(K), repeat=N)]


def by_loops(vae, x, y):
    """Compute log p(x | y) and the ELBO of each datum, one datum and one code at a time."""
    evidence, elbo = [], []
    for datum, label in zip(x, y, strict=True):
        one = torch.eye(C, dtype=x.dtype)[label]
        log_q = vae.encoder(vae.observation.inputs(datum), one).unflatten(-1, (N, K)).log_softmax(-1)
        joint, weights = [], []
        for z in codes():
            log_x = vae.observation(vae.decoder(z.flatten(), one).unsqueeze(0)).log_prob(datum.unsqueeze(0)).squeeze()
            joint.append(log_x - N * math.log(K))
            weights.append((log_q * z).sum())
        joint, weights = torch.stack(joint), torch.stack(weights)
        evidence.append(joint.logsumexp(0))
        elbo.append((weights.exp() * (joint - weights)).sum())
    return torch.stack(evidence), torch.stack(elbo)


@pytest.mark.parametrize("make", [images, table])
def test_evidence_and_bound_are_those_of_loops(make):
    vae, x = make()
    strong(vae)
    evidence, elbo = by_loops(vae, x, LABELS)
    torch.testing.assert_close(exact.log_evidence(vae, x, LABELS), evidence, atol=1e-8, rtol=0)
    torch.testing.assert_close(exact.elbo(vae, x, LABELS), elbo, atol=1e-8, rtol=0)
    assert (exact.log_evidence(vae, x, (LABELS + 1) % C) - evidence).abs().min() > 1e-3  # the control: other classes


@pytest.mark.parametrize("make", [images, table])
def test_codes_that_data_share_are_decoded_once_for_each_class(make):
    vae, x = make()
    strong(vae)
    sizes = []
    vae.decoder.register_forward_hook(lambda *given: sizes.append(given[-1].shape[:-1].numel()))
    for loss in (exact.elbo, exact.log_evidence):
        found, expected = loss(vae, x, LABELS), by_loops(vae, x, LABELS)[loss is exact.elbo]
        own, by_hand = (torch.autograd.grad(each.sum(), [*vae.decoder.parameters()]) for each in (found, expected))
        torch.testing.assert_close(own, by_hand, atol=1e-8, rtol=1e-8)
    assert max(sizes) == K**N * C < K**N * B
    few, many = (exact.cost(vae, x.repeat(count, 1), LABELS.repeat(count)).operations for count in (1, 4))
    assert many < 2 * few  # of pairs of codes and data, it would be 4 times as many


def test_samples_have_the_means_of_their_class():
    vae = strong(images()[0])
    for label in range(C):
        one = torch.eye(C, dtype=torch.float64)[label]
        mean = torch.stack([vae.decoder(z.flatten(), one).sigmoid() for z in codes()]).mean(0)
        found = sample(vae, 4000, label=label, pixels=True)
        assert ((found.mean(0) - mean).abs() < 5 * (mean * (1 - mean) / 4000).sqrt() + 1e-9).all()
        assert not ((sample(vae, 4000, label=(label + 1) % C).mean(0) - mean).abs() < 0.01).all()
    torch.manual_seed(0)
    each = sample(vae, 8)
    torch.manual_seed(0)
    assert torch.equal(each, torch.cat([sample(vae, count, label=label) for label, count in enumerate((2, 3, 3))]))


def test_missing_cells_are_those_of_the_class():
    vae, x = table()
    strong(vae)
    place = [column.name for column in COLUMNS].index("sex")
    x[:, place] = math.nan
    with torch.no_grad():
        known = by_loops(vae, x, LABELS)[0]
        x[:, place] = 1.0
        expected = (by_loops(vae, x, LABELS)[0] - known).exp()  # p(m | the other cells, y)
    x[:, place] = math.nan
    levels = impute(vae, x, labels=LABELS).levels.query("column == 'sex' and level == 'm'")
    torch.testing.assert_close(torch.tensor(levels["probability"].to_numpy()), expected, atol=1e-8, rtol=0)
    sampled = impute(vae, x, labels=LABELS, averaging="sampled", num_particles=20_000)
    found = torch.tensor(sampled.levels.query("column == 'sex' and level == 'm'")["probability"].to_numpy())
    limits = 5 * 0.5 / torch.tensor(sampled.effective_sample_size).sqrt()  # the s.d. of a probability is at most 0.5
    assert ((found - expected).abs() < limits).all()
    others = torch.tensor(
        impute(vae, x, labels=(LABELS + 1) % C).levels.query("level == 'm'")["probability"].to_numpy()
    )
    assert ((others - expected).abs() > limits).any()  # the control: labels matter
    with pytest.raises(ValueError, match="Expected a label of each datum for a ConditionalVAE"):
        impute(vae, x)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, r"Expected labels y with data x, since the model is p\(x \| y\)"),
        (LABELS[:2], r"Expected labels as 6 integers, one for each datum, but found torch.int64 of shape \(2,\)"),
        (LABELS + 1, "Expected labels 0 to 2, but found values from 1 to 3"),
        (LABELS - 1, "Expected labels 0 to 2, but found values from -1 to 1"),
    ],
)
def test_other_labels_are_refused(labels, sentence):
    vae, x = images()
    with pytest.raises(ValueError, match=sentence):
        exact.elbo(vae, x, labels)
