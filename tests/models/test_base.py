"""Ready programs with several latents: their bounds, gradients, labels and training. Stock Pyro is the oracle."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_gvae import ExactELBO, TrainConfig, estimator, exact, fit, load, make_step
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.conditional_vae import ConditionalVAE
from pyro_gvae.models.gaussian_mixture_vae import GaussianMixtureVAE
from pyro_gvae.models.hierarchical_categorical_vae import HierarchicalCategoricalVAE
from pyro_gvae.models.joint_vae import JointVAE
from pyro_gvae.models.semi_supervised_vae import SemiSupervisedVAE
from pyro_gvae.train.monitor import choose_judge

B, D = 5, 6
X = torch.rand(B, D, generator=torch.Generator().manual_seed(1)).round()
LABELS = torch.tensor([0, 2, -1, 1, -1])

PROGRAMS = {
    "mixture": (lambda d: GaussianMixtureVAE(d, 3, 2, (5,)), ()),
    "M2": (lambda d: SemiSupervisedVAE(d, 3, 2, (5,)), ()),
    "M2 with labels": (lambda d: SemiSupervisedVAE(d, 3, 2, (5,), label_weight=2.0), (LABELS,)),
    "given labels": (lambda d: ConditionalVAE(d, 3, 2, 3, (5,)), (LABELS.clamp_min(0),)),
    "three layers": (lambda d: HierarchicalCategoricalVAE(d, 3, 1, 3, (5,)), ()),
    "two layers of two": (lambda d: HierarchicalCategoricalVAE(d, 2, 2, 2, (5,)), ()),
    "side by side": (lambda d: JointVAE(d, 2, 3, 2, (5,)), ()),
    "bits": (lambda d: BernoulliVAE(d, 3, (5,)), ()),
}
WITH_NORMALS = {"mixture", "M2", "M2 with labels", "side by side"}
ALL = pytest.mark.parametrize("name", PROGRAMS)


def made(name, *, data_dim=D):
    torch.manual_seed(0)
    make, labels = PROGRAMS[name]
    return make(data_dim), labels


@pytest.fixture
def fixed_noise(monkeypatch):
    """Put every normal's sample 0.7 standard deviations above its mean, so that sums over codes are deterministic."""

    def rsample(self, sample_shape=()):
        return (self.loc + 0.7 * self.scale).expand(self._extended_shape(sample_shape))

    monkeypatch.setattr(torch.distributions.Normal, "rsample", rsample)


def of_bits(vae, x):
    """Compute minus the ELBO of a `BernoulliVAE` by a loop, as stock Pyro cannot enumerate a site of several bits."""
    p, q = dist.Bernoulli(logits=vae.prior_logits), dist.Bernoulli(logits=vae.encoder(x))
    loss = x.new_zeros(())
    for bits in itertools.product((0.0, 1.0), repeat=vae.num_bits):
        z = x.new_tensor(bits)
        log_q = q.log_prob(z).sum(-1)
        log_joint = p.log_prob(z).sum() + vae.observation(vae.decoder(z).expand(len(x), -1)).log_prob(x)
        loss = loss - (log_q.exp() * (log_joint - log_q)).sum()
    return loss


@ALL
def test_bound_and_gradients_are_those_of_stock_pyro(name, fixed_noise):
    vae, labels = made(name)
    vae, x = vae.double(), X.double()
    if isinstance(vae, BernoulliVAE):
        expected = of_bits(vae, x)
    else:
        stock = TraceEnum_ELBO(max_plate_nesting=1)
        expected = stock.differentiable_loss(vae.model, config_enumerate(vae.guide), x, *labels)
    found = ExactELBO().differentiable_loss(vae.model, vae.guide, x, *labels)
    parameters = list(vae.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected)]
    assert all(gradient is not None for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@ALL
@pytest.mark.parametrize("method", ["reinforce-loo", "vimco", "reweighted-wake-sleep", "gumbel-softmax"])
def test_estimators_reach_every_parameter(name, method):
    vae, labels = made(name)
    options = {"kl": "relaxed"} if method == "gumbel-softmax" else {}  # the default KL is no bound where layers cross
    model, guide, elbo = estimator(method, **options).bind(vae)
    with pyro.get_param_store().scope():
        elbo.loss_and_grads(model, guide, X, *labels)
    for key, parameter in vae.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["mixture", "M2", "side by side"])
@pytest.mark.parametrize("method", ["st-gumbel-softmax", "reinmax", "gumbel-softmax[kl=categorical]"])
def test_surrogates_of_one_hots_take_steps(name, method, request):
    if method == "reinmax":
        request.getfixturevalue("recorded")
    vae, _ = made(name)
    named = method.split("[")[0]
    step = make_step(vae, estimator(named, **({"kl": "categorical"} if named != method else {})), lr=0.05)
    losses = [step(X).item() for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])


# Labels.


def test_a_label_makes_a_bound_of_both_and_the_others_keep_theirs(fixed_noise):
    torch.manual_seed(0)
    vae = SemiSupervisedVAE(D, 3, 2, (5,), label_weight=2.0)
    found, without = exact.elbo(vae, X, LABELS), exact.elbo(vae, X)
    known = LABELS >= 0
    torch.testing.assert_close(found[~known], without[~known])
    x, y = X[known], torch.eye(3)[LABELS[known]]
    loc, log_scale = vae.encoder(torch.cat([x], -1), y).chunk(2, -1)
    q = dist.Normal(loc, log_scale.exp()).to_event(1)
    z = loc + 0.7 * log_scale.exp()
    log_joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + vae.observation(vae.decoder(y, z)).log_prob(x)
    classified = (vae.classifier(x).log_softmax(-1) * y).sum(-1)
    expected = log_joint - torch.tensor(3.0).log() - q.log_prob(z) + 2 * classified
    torch.testing.assert_close(found[known], expected)
    assert (exact.elbo(vae, X, (LABELS + 1) % 3)[known] - expected).abs().min() > 1e-3  # other labels, other bounds


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (LABELS[:3], r"Expected labels as 5 integers, one for each datum, but found torch.int64 of shape \(3,\)"),
        (LABELS.float(), "but found torch.float32"),
        (LABELS + 2, "Expected value argument|Expected invalid values|support"),
    ],
)
def test_other_labels_are_refused(labels, sentence):
    vae, _ = made("M2 with labels")
    with pyro.validation_enabled(True), pytest.raises(ValueError, match=sentence):
        ExactELBO().loss(vae.model, vae.guide, X, labels)


def test_names_and_places_of_arguments_give_the_same_run():
    weights = []
    for data in ((X, LABELS), {"x": X, "y": LABELS}):
        vae, _ = made("M2 with labels")
        fit(vae, data, TrainConfig(stages="exact:2steps", batch_size=B), progress=False)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    assert torch.equal(*weights)


# Training.


@pytest.mark.usefixtures("recorded")
@ALL
def test_a_short_training_improves_the_bound_of_digits(name):
    digits = load("digits", binarize="threshold")
    vae, labels = made(name, data_dim=64)
    x = digits.train[:200]
    data = (x, digits.train_labels[:200] % 3) if labels else (x,)
    config = TrainConfig(stages="exact:15steps", learning_rate=1e-2, evaluate_every="15steps")
    first, last = fit(vae, data, config, progress=False).history
    assert first["elbo_is"] == last["elbo_is"] == ("codes summed" if name in WITH_NORMALS else "exact")
    assert last["train_elbo"] > first["train_elbo"] + 3


def test_the_cost_of_a_bound_is_counted_where_the_evidence_is_none(fixed_noise):
    vae, _ = made("mixture")
    with pytest.raises(ValueError, match="latents are all discrete, but found 'z'"):
        exact.cost(vae, X)
    few, more = exact.elbo_cost(vae, X[:2]), exact.elbo_cost(vae, torch.cat([X, X]))
    assert few.num_codes == more.num_codes == 3 and more.operations > 4 * few.operations
    assert choose_judge(vae, (X,)) == "exact"
