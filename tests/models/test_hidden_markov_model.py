"""The hidden Markov model: its evidence by the forward algorithm, its bound by stock Pyro, its guide, its lengths."""

from unittest import mock

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.utils.data import DataLoader, TensorDataset

from pyro_gvae import ExactELBO, TrainConfig, estimator, exact, fit
from pyro_gvae.evaluate.generate import encode
from pyro_gvae.evaluate.guides import read_guide
from pyro_gvae.models.hidden_markov_model import HiddenMarkovModel

B, T, D, K = 5, 4, 2, 3
X = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([4, 3, 1, 2, 4])
GIVEN = pytest.mark.parametrize("lengths", [(), (LENGTHS,)], ids=["all steps", "lengths"])


def made(dtype=torch.float64):
    torch.manual_seed(0)
    hmm = HiddenMarkovModel(D, K, hidden=4, observation="gaussian")
    with torch.no_grad():
        for logits in (hmm.initial_logits, hmm.transition_logits, hmm.guide_initial_logits):
            logits.normal_()
    return hmm.to(dtype), X.to(dtype)


def log_likelihoods(hmm, x):
    """Compute log p(x_t | z_t), shape (B, T, K)."""
    return torch.distributions.Normal(hmm.natural, hmm.observation.log_scale.exp()).log_prob(x.unsqueeze(2)).sum(-1)


def by_forward_algorithm(hmm, x, lengths):
    """Compute log p(x) of each sequence by a loop over its own steps."""
    likelihoods, transition = log_likelihoods(hmm, x), hmm.transition_logits.log_softmax(-1)
    found = []
    for row, length in zip(likelihoods, lengths, strict=True):
        message = hmm.initial_logits.log_softmax(-1) + row[0]
        for t in range(1, length):
            message = (message.unsqueeze(-1) + transition).logsumexp(0) + row[t]
        found.append(message.logsumexp(0))
    return torch.stack(found)


@GIVEN
def test_the_evidence_is_that_of_the_forward_algorithm(lengths):
    hmm, x = made()
    expected = by_forward_algorithm(hmm, x, *lengths or (torch.full((B,), T),))
    torch.testing.assert_close(exact.log_evidence(hmm, x, *lengths), expected)
    with pyro.validation_enabled(False):  # stock Pyro warns of a guide without sites
        stock = -TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(hmm.model), lambda *_: None, x, *lengths)
    assert stock == pytest.approx(expected.sum().item())


@GIVEN
def test_bound_and_gradients_are_those_of_stock_pyro(lengths):
    hmm, x = made()
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    expected = stock.differentiable_loss(hmm.model, config_enumerate(hmm.guide), x, *lengths)
    found = ExactELBO().differentiable_loss(hmm.model, hmm.guide, x, *lengths)
    torch.testing.assert_close(found, expected)
    parameters = list(hmm.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(loss, parameters) for loss in (found, expected)))


def test_the_guide_has_the_form_of_the_exact_posterior(monkeypatch):
    hmm, x = made()
    likelihoods, transition = log_likelihoods(hmm, x), hmm.transition_logits.log_softmax(-1)
    from_here = [likelihoods[:, -1]]  # log p(x_t, .., x_(T-1) | z_t)
    for t in reversed(range(T - 1)):
        from_here.insert(0, likelihoods[:, t] + (transition + from_here[0].unsqueeze(1)).logsumexp(-1))
    evidence = exact.log_evidence(hmm, x)
    assert (evidence - exact.elbo(hmm, x)).min() > 0.1  # the control: an untrained GRU
    monkeypatch.setattr(hmm, "encoder", lambda *_: torch.stack(from_here, 1))
    with torch.no_grad():
        hmm.guide_initial_logits.copy_(hmm.initial_logits)
        hmm.guide_transition_logits.copy_(transition)
    torch.testing.assert_close(exact.elbo(hmm, x), evidence)


@GIVEN
def test_what_is_said_of_its_states_is_what_their_joint_codes_say(lengths):
    """Compare with a plain loop instead of `pyro.markov`, where all codes are summed together."""
    hmm, x = made()
    given = (x[:, :3], *(own.clamp_max(3) for own in lengths))

    def numbers():
        said = read_guide(hmm, given)
        best = exact.mean_field(hmm, *given)
        return said.log_probs, said.entropies, said.kls, best.elbo, encode(hmm, given, "exact")

    found = numbers()
    with mock.patch.object(pyro, "markov", lambda steps, **_: steps):
        expected = numbers()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_lies_beyond_the_end_of_a_sequence_changes_nothing():
    hmm, x = made()
    beyond = torch.arange(T) >= LENGTHS.unsqueeze(-1)
    found = [exact.elbo(hmm, torch.where(beyond.unsqueeze(-1), fill, x), LENGTHS) for fill in (0.0, 7.0)]
    torch.testing.assert_close(*found)
    longer = torch.cat([x, x], 1)
    torch.testing.assert_close(exact.elbo(hmm, longer[:, : T + 2], LENGTHS), found[0])
    torch.testing.assert_close(exact.elbo(hmm, x[3:4, :2]), found[0][3:4])


@pytest.mark.parametrize("method", ["reinforce-loo", "vimco", "reweighted-wake-sleep", "gumbel-softmax", "reinmax"])
def test_estimators_reach_every_parameter(method):
    hmm, x = made(torch.float32)
    model, guide, elbo = estimator(method).bind(hmm)
    with pyro.get_param_store().scope():
        elbo.loss_and_grads(model, guide, x, LENGTHS)
    for key, parameter in hmm.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key


@pytest.mark.usefixtures("recorded")
def test_a_short_training_improves_the_bound():
    hmm, x = made(torch.float32)
    data = {"x": x[:, :2], "lengths": LENGTHS.clamp_max(2)}
    config = TrainConfig(stages="exact:20steps", batch_size=B, learning_rate=3e-2, evaluate_every="20steps")
    first, last = fit(hmm, data, config, progress=False).history
    assert first["elbo_is"] == last["elbo_is"] == "exact" and last["train_elbo"] > first["train_elbo"] + 0.5


@pytest.mark.parametrize("given", [lambda x: x, lambda x: x.numpy(), lambda x: DataLoader(TensorDataset(x))])
def test_sequences_alone_keep_their_shape(given):
    """Sequences as the only data of a program, alone or in a tuple, give the same weights, bit for bit."""
    config = TrainConfig(stages="reinforce-loo:1steps", batch_size=B, judge="none")
    trained = []
    for data, program in ((lambda x: (x,), lambda hmm: hmm), (given, lambda hmm: hmm), (given, pair_of)):
        hmm, x = made(torch.float32)
        fit(program(hmm), data(x), config, progress=False)
        trained.append(list(hmm.parameters()))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*trained, strict=True))


def pair_of(hmm):
    return exact.Pair(hmm.model, hmm.guide)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((X[0],), r"Expected sequences of shape \(B, T, 2\), but found \(4, 2\)"),
        ((X[:, :0],), r"but found \(5, 0, 2\)"),
        ((X, LENGTHS[:3]), r"Expected lengths as 5 integers, .* but found torch.int64 of shape \(3,\)"),
        ((X, LENGTHS.float()), "but found torch.float32"),
        ((X, LENGTHS - 1), "Expected lengths of 1 to 4, but found 0 to 3"),
        ((X, LENGTHS + 1), "Expected lengths of 1 to 4, but found 2 to 5"),
    ],
)
def test_other_data_are_refused(arguments, sentence):
    hmm, _ = made(torch.float32)
    with pyro.validation_enabled(True), pytest.raises(ValueError, match=sentence):
        hmm.model(*arguments)
