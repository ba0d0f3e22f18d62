"""Priors of dependent digits: brute force over all codes, stock Pyro, and estimators of every family."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.nn.functional import one_hot

from pyro_gvae import exact
from pyro_gvae.distributions.codes import Left, joint_codes
from pyro_gvae.distributions.coupled import CodePrior, coupled
from pyro_gvae.elbos.exact import ExactELBO
from pyro_gvae.elbos.free_bits import FreeBits
from pyro_gvae.estimators.registry import estimator
from pyro_gvae.evaluate.certified import certified_bounds
from pyro_gvae.evaluate.code_statistics import guide_log_probs
from pyro_gvae.evaluate.generate import sample
from pyro_gvae.evaluate.guides import read_guide
from pyro_gvae.handlers import discretize, enumerated, relax, straight_through, unimix
from pyro_gvae.models.categorical_vae import CategoricalVAE
from pyro_gvae.models.causal import CausalTransformer, MaskedMLP
from pyro_gvae.models.pairwise_priors import TreePrior
from pyro_gvae.models.priors import PRIORS, AutoregressivePrior, JointPrior, MixturePrior, as_prior

B, N, K, D = 3, 3, 2, 5
CODES = one_hot(torch.tensor(list(itertools.product(range(K), repeat=N))), K).double()
DATA = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [1, 0, 0, 1, 1]]).double()


def new_vae(prior, seed=0):
    """Return a VAE in double precision whose prior is far from uniform."""
    torch.manual_seed(seed)
    vae = CategoricalVAE(D, N, K, (4,), prior=prior).double()
    with torch.no_grad():
        for parameter in vae.prior.parameters():
            parameter.add_(torch.randn_like(parameter))
        if isinstance(vae.prior, TreePrior):  # a tree that is not a chain
            vae.prior.sources.copy_(torch.tensor([1, 1]))
            vae.prior.targets.copy_(torch.tensor([2, 0]))
    return vae


def logits_of(network, code):
    """Compute the logits of a causal network for one code, (NK,), from its weights."""
    if isinstance(network, MaskedMLP):
        hidden = (network.first.weight * network.reads) @ code.flatten() + network.first.bias
        last = (network.last.weight * network.writes) @ hidden.relu() + network.last.bias
        return last + network.direct.weight @ code.flatten()
    tokens = torch.stack([code[n] @ network.embedding[n] for n in range(len(code))])
    tokens = torch.cat([torch.zeros_like(tokens[:1]), tokens[:-1]]) + network.position
    mask = torch.nn.Transformer.generate_square_subsequent_mask(len(code), dtype=tokens.dtype)
    for block in network.blocks:
        width = tokens.shape[-1]
        layer = torch.nn.TransformerEncoderLayer(
            width, block.num_heads, 4 * width, 0.0, norm_first=True, batch_first=True, dtype=tokens.dtype
        )
        parts = {
            "self_attn.in_proj_weight": block.project.weight,
            "self_attn.in_proj_bias": block.project.bias,
            "self_attn.out_proj.weight": block.gather.weight,
            "self_attn.out_proj.bias": block.gather.bias,
            "linear1.weight": block.layer[0].weight,
            "linear1.bias": block.layer[0].bias,
            "linear2.weight": block.layer[2].weight,
            "linear2.bias": block.layer[2].bias,
            "norm1.weight": block.before_attention.weight,
            "norm1.bias": block.before_attention.bias,
            "norm2.weight": block.before_layer.weight,
            "norm2.bias": block.before_layer.bias,
        }
        tokens = torch.func.functional_call(layer, parts, (tokens[None],), {"src_mask": mask})[0]
    tokens = network.norm(tokens)
    return torch.cat([network.readout[n] @ tokens[n] + network.bias[n] for n in range(len(code))])


def by_definition(prior, code):
    """Compute log p of one code (N, K) from the definition of each prior."""
    digits = code.argmax(-1).tolist()
    if isinstance(prior, JointPrior):
        return prior.module(CODES).log_softmax(0)[int("".join(map(str, digits)), K)]
    if isinstance(prior, MixturePrior):
        parts = [logits.log_softmax(-1)[range(N), digits].sum() for logits in prior.logits]
        return (prior.weights.softmax(0) @ torch.stack(parts).exp()).log()
    if isinstance(prior, AutoregressivePrior):  # from truncated codes, so that later digits cannot be read
        chopped = [torch.cat([code[:n], torch.zeros(N - n, K)]) for n in range(N)]
        logits = [logits_of(prior.network, one) for one in chopped]
        return sum(logits[n].unflatten(0, (N, K))[n].log_softmax(-1)[digits[n]] for n in range(N))
    root = prior.edges[0][0]
    total = prior.root_logits.log_softmax(-1)[digits[root]]
    for (parent, child), logits in zip(prior.edges, prior.logits, strict=True):
        total = total + logits[digits[parent]].log_softmax(-1)[digits[child]]
    return total


def brute(vae, x=DATA):
    """Compute log p(z) (S,), log p(x, z) and log q(z | x) (S, B) by a loop over all codes."""
    log_p = torch.stack([by_definition(vae.prior, code) for code in CODES])
    log_q = torch.stack([(vae.encoder(x).log_softmax(-1) * code).sum((-2, -1)) for code in CODES])
    log_x = torch.stack([vae.observation(vae.decoder(code).expand(len(x), -1)).log_prob(x) for code in CODES])
    return log_p, log_p.unsqueeze(-1) + log_x, log_q


def gradients(loss, vae):
    parameters = [p for p in vae.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


def assert_equal(found, expected, tolerance=1e-8):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


NAMES = (*PRIORS, "autoregressive[network=transformer,width=4,num_heads=2,num_layers=1]")


@pytest.fixture(params=NAMES)
def vae(request):
    return new_vae(request.param)


def test_it_is_what_its_definition_says_and_normalized(vae):
    log_p = vae.prior.log_prob(CODES)
    expected = torch.stack([by_definition(vae.prior, code) for code in CODES])
    torch.testing.assert_close(log_p, expected, rtol=1e-8, atol=1e-8)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-8)
    assert log_p.std() > 0.1  # not the uniform prior


def test_low_precision_loses_no_nats(vae):
    """A sum of logarithms in bfloat16 would lose them."""
    low = vae.prior.bfloat16()
    log_p = low.log_prob(CODES.bfloat16())
    assert log_p.dtype == torch.float32
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert low.mean_log_prob(torch.full((4, N, K), 1 / K)).tolist() == pytest.approx(
        [log_p.mean().item()] * 4, abs=1e-5
    )


def test_the_mean_under_independent_digits_is_the_sum_over_codes(vae):
    logits = torch.randn(4, N, K).double().requires_grad_()
    log_q = torch.stack([(logits.log_softmax(-1) * code).sum((-2, -1)) for code in CODES])
    expected = vae.prior.log_prob(CODES) @ log_q.exp()
    found = vae.prior.mean_log_prob(logits.softmax(-1))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert_equal(torch.autograd.grad(found.sum(), logits), torch.autograd.grad(expected.sum(), logits))


def test_draws_have_its_probabilities(vae):
    torch.manual_seed(1)
    count = 5_000
    probs = vae.prior.log_prob(CODES).exp().detach()
    trace = poutine.trace(discretize(vae.model)).get_trace(DATA[:1].expand(count, -1))
    soft = poutine.trace(relax(vae.model, temperature=0.5)).get_trace(DATA[:1].expand(count, -1)).nodes["z"]["value"]
    torch.testing.assert_close(soft.sum(-1), torch.ones(count, N).double())
    for codes in (vae.prior.draw(count), trace.nodes["z"]["value"], one_hot(soft.argmax(-1), K)):
        numbers = (codes.argmax(-1) * torch.tensor([4, 2, 1])).sum(-1)
        found = numbers.bincount(minlength=len(CODES)).double() / count
        assert ((found - probs).abs() < 5 * (probs * (1 - probs) / count).sqrt() + 1e-12).all()


def test_generated_data_are_those_of_its_codes(vae):
    torch.manual_seed(2)
    log_p, *_ = brute(vae)
    means = vae.observation(vae.decoder(CODES)).mean
    mean, second = log_p.exp() @ means, log_p.exp() @ means.square()
    found = sample(vae, 2000).mean(0)
    assert ((found - mean).abs() < 5 * ((second - mean.square()) / 2000).sqrt() + 1e-9).all()


def test_elbo_and_evidence_are_those_of_stock_enumeration_of_one_integer(vae):
    """The oracle is a program of stock Pyro with a single integer latent of S probabilities."""

    def model(x):
        with pyro.plate("data", len(x)):
            number = pyro.sample("number", dist.Categorical(logits=brute(vae)[0]))
            pyro.sample("x", dist.Bernoulli(logits=vae.decoder(CODES[number])).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            log_q = torch.stack([(vae.encoder(x).log_softmax(-1) * code).sum((-2, -1)) for code in CODES], -1)
            pyro.sample("number", dist.Categorical(logits=log_q), infer={"enumerate": "parallel"})

    stock = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, DATA)
    _, joint, log_q = brute(vae)
    log_evidence = joint.logsumexp(0)
    assert stock.item() == pytest.approx(-(log_q.exp() * (joint - log_q)).sum().item(), abs=1e-8)
    pairs = [
        (
            TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerated(vae.model), enumerated(vae.guide), DATA),
            stock,
        ),
        (ExactELBO().differentiable_loss(vae.model, vae.guide, DATA), stock),
        (ExactELBO(slice_size=3).differentiable_loss(vae.model, vae.guide, DATA), stock),
        (-exact.log_evidence(vae, DATA).sum(), -log_evidence.sum()),
        # The guide lacks the latent, which then has its exact posterior.
        (-exact.elbo(exact.Pair(vae.model, lambda x: None), DATA).sum(), -log_evidence.sum()),
    ]
    for found, expected in pairs:
        assert found.item() == pytest.approx(expected.item(), abs=1e-8)
        assert_equal(gradients(found, vae), gradients(expected, vae))
    found = exact.posterior(vae, DATA, num_codes=1)
    marginals = torch.einsum("sb,snk->bnk", joint.softmax(0), CODES)
    assert_equal([found.marginals, found.codes[:, 0]], [marginals, CODES[joint.argmax(0)]])


def estimates(vae, name, repeats, **options):
    """Return repeated estimates of the loss and of the prior's gradient, by one estimator."""
    model, guide, elbo = estimator(name, **options).bind(vae)
    rows = []
    with pyro.settings.context(module_local_params=True):
        for _ in range(repeats):
            vae.zero_grad()
            loss = elbo.loss_and_grads(model, guide, DATA)
            own = [p.grad.flatten() for p in vae.prior.parameters() if p.grad is not None]
            rows.append(torch.cat([torch.tensor([loss]).double(), *own]))
    return torch.stack(rows)


def exactly(vae):
    """Return the exact loss and the exact gradient of the prior."""
    _, joint, log_q = brute(vae)
    loss = -(log_q.exp() * (joint - log_q)).sum()
    own = torch.autograd.grad(loss, list(vae.prior.parameters()))
    return torch.cat([loss.detach().reshape(1), *(one.flatten() for one in own)])


@pytest.mark.parametrize(
    ("name", "options"),
    [("exact", {}), ("top-c", {"num_codes": 8}), ("unordered-set", {"num_particles": 8})],
)
def test_estimators_that_sum_all_codes_are_exact(vae, name, options):
    [found] = estimates(vae, name, 1, **options)
    torch.testing.assert_close(found, exactly(vae), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["reinforce-loo", "local-expectation", "disarm", "rebar", "reinmax"])
def test_estimators_that_draw_have_the_right_mean(vae, name):
    """Test the loss and the prior's gradient: with a surrogate gradient, only that of the encoder is biased."""
    torch.manual_seed(3)
    found = estimates(vae, name, 50)  # with few, the standard error itself is too uncertain
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - exactly(vae)).abs() < 5 * error + 1e-8).all()


@pytest.mark.parametrize("name", ["gumbel-softmax", "straight-through"])
def test_the_categorical_kl_is_in_closed_form(vae, name):
    """The KL has no noise, so a single draw gives the exact gradient of the prior."""
    [found] = estimates(vae, name, 1)
    torch.testing.assert_close(found[1:], exactly(vae)[1:], rtol=1e-8, atol=1e-8)
    model, guide, elbo = estimator({"z": name}).bind(vae)
    with pyro.settings.context(module_local_params=True):
        vae.zero_grad()
        elbo.loss_and_grads(model, guide, DATA)
    own = torch.cat([p.grad.flatten() for p in vae.prior.parameters()])
    torch.testing.assert_close(own, exactly(vae)[1:], rtol=1e-8, atol=1e-8)


def test_the_relaxed_density_has_the_prior_at_soft_codes_as_a_weight(vae):
    trace = poutine.trace(vae.guide).get_trace(DATA)
    replayed = poutine.trace(poutine.replay(vae.model, trace)).get_trace(DATA)
    uniform = CategoricalVAE(D, N, K, (4,), encoder=vae.encoder, decoder=vae.decoder, name="uniform").double()
    plain = poutine.trace(poutine.replay(uniform.model, trace)).get_trace(DATA)
    soft = trace.nodes["z"]["value"]
    weight = (vae.prior.log_prob(soft) + N * math.log(K)).sum()
    torch.testing.assert_close(replayed.log_prob_sum(), plain.log_prob_sum() + weight)
    for loss in (Trace_ELBO(), estimator("straight-through", kl="sampled").bind(vae)[2]):
        assert math.isfinite(loss.loss_and_grads(straight_through(vae.model), straight_through(vae.guide), DATA))


def test_evaluations_know_it(vae):
    log_p, joint, log_q = brute(vae)
    kl = (log_q.exp() * (log_q - log_p.unsqueeze(-1))).sum(0)
    torch.testing.assert_close(read_guide(vae, DATA).kls["z"], kl, rtol=1e-8, atol=1e-8)
    free = FreeBits(ExactELBO(), nats=100.0).loss(vae.model, vae.guide, DATA)
    likelihood = (log_q.exp() * (joint - log_p.unsqueeze(-1))).sum()
    assert free == pytest.approx(-likelihood.item() + B * 100, abs=1e-6)  # the latent is one group
    for count in (3, len(CODES)):
        bounds = certified_bounds(vae, DATA, num_codes=count)
        log_evidence = joint.logsumexp(0)
        assert (bounds.lower <= log_evidence + 1e-9).all() and (log_evidence <= bounds.upper + 1e-9).all()
    torch.testing.assert_close(bounds.lower, log_evidence, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("network", [MaskedMLP, CausalTransformer])
def test_logits_depend_on_earlier_digits_alone(network):
    torch.manual_seed(5)
    made = network(4, 3).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    codes = torch.rand(2, 4, 3).double().softmax(-1)
    slopes = torch.autograd.functional.jacobian(made, codes[0]).abs().sum((1, 3))  # (logits of n, digit m)
    assert (slopes.tril(-1) + torch.ones(4, 4).triu() > 0).all() and (slopes.triu() == 0).all()
    torch.testing.assert_close(made(codes), torch.stack([made(code) for code in codes]))


@pytest.mark.parametrize("name", NAMES)
def test_a_category_is_split_in_two_whatever_the_other_digits_are(name):
    torch.manual_seed(6)
    prior = as_prior(name, 3, 3).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter))
        if isinstance(prior, TreePrior):
            prior.sources.copy_(torch.tensor([1, 1]))
            prior.targets.copy_(torch.tensor([2, 0]))
    codes = prior.all_codes()
    for digit, source, to in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        before = prior.log_prob(codes).exp().detach()
        prior.split(digit, source, to)
        after = prior.log_prob(codes).exp().detach()
        assert after.sum().item() == pytest.approx(1.0)
        digits = codes[:, digit].argmax(-1)
        torch.testing.assert_close(after[digits == to], after[digits == source])
        least = torch.where(digits == to, 0.0, torch.where(digits == source, before / 2, before))
        assert (after >= least - 1e-12).all() and (after > least + 1e-6).any()


#: Latents left and their categories: without the first digit, the inner ones, the root of the tree, its inner digit,
#: all but a leaf, none.
LEFT = [
    ([1, 2, 3], [[0, 2], [1, 2], [0, 1]]),
    ([0, 3], [[0, 1, 2], [0, 1, 2]]),
    ([0, 2, 3], [[0, 1], [0, 2], [1, 2]]),
    ([0, 1, 3], [[0, 1], [0, 2], [1, 2]]),
    ([3], [[1, 2]]),
    ([0, 1, 2, 3], [[0, 2], [0, 1], [1, 2], [0, 1]]),
]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("autoregressive")])
@pytest.mark.parametrize(("latents", "categories"), LEFT)
def test_what_is_left_of_a_prior_is_that_given_the_codes_left(name, latents, categories):
    torch.manual_seed(7)
    prior = as_prior(name, 4, 3).double()
    with torch.no_grad():
        for parameter in [*prior.parameters(), *([prior.shares] if name == "joint" else [])]:
            parameter.add_(torch.randn_like(parameter))
        if isinstance(prior, TreePrior):  # 1 -> 2 -> 0 and 2 -> 3
            prior.sources.copy_(torch.tensor([1, 2, 2]))
            prior.targets.copy_(torch.tensor([2, 0, 3]))
    left = Left(torch.tensor(latents), torch.tensor(categories), torch.tensor([2, 0, 1, 2]))
    larger = left.larger(joint_codes(*left.categories.shape).double())
    before = prior.log_prob(one_hot(larger, 3).double()).log_softmax(0).detach()
    same = list(prior.parameters())
    prior.keep(left)
    torch.testing.assert_close(prior.log_prob(prior.all_codes()).detach(), before, rtol=1e-8, atol=1e-8)
    assert all(one is other for one, other in zip(same, prior.parameters(), strict=True))
    assert prior.all_codes().shape[1:] == prior.draw(2).shape[1:] == left.categories.shape
    fresh = as_prior(name, *left.categories.shape)
    shapes = [{key: tuple(value.shape) for key, value in one.state_dict().items()} for one in (prior, fresh)]
    assert shapes[0] == shapes[1] and repr(prior) == repr(fresh) and prior.arguments == fresh.arguments


def test_a_tree_is_the_best_of_all_trees():
    """Chow and Liu: no other tree is closer to the aggregate posterior."""
    torch.manual_seed(4)
    probs = (2 * torch.randn(40, 4, 3)).double().softmax(-1)
    codes = one_hot(torch.tensor(list(itertools.product(range(3), repeat=4))), 3).double()
    aggregated = torch.stack([(probs * code).sum(-1).prod(-1).mean() for code in codes])
    found = TreePrior(4, 3).double()
    assert found.refit(probs) and not found.refit(probs)
    best = aggregated @ found.log_prob(codes)
    others = []
    for parents in itertools.product(range(4), repeat=3):  # of the digits 1 to 3; not all are trees
        other = TreePrior(4, 3).double()
        edges, left = [], dict(zip((1, 2, 3), parents, strict=True))
        reached = {0}
        while any(parent in reached for parent in left.values()):
            child = next(child for child, parent in left.items() if parent in reached)
            edges.append((left.pop(child), child))
            reached.add(child)
        if left:
            continue
        other.sources.copy_(torch.tensor([parent for parent, _ in edges]))
        other.targets.copy_(torch.tensor([child for _, child in edges]))
        for i, (parent, child) in enumerate(edges):
            pair = torch.einsum("bi,bj->ij", probs[:, parent], probs[:, child])
            other.logits.data[i] = pair.log()
        other.root_logits.data = probs[:, 0].mean(0).log()
        others.append((aggregated @ other.log_prob(codes)).item())
    assert len(others) == 16  # labelled trees of four nodes
    assert best.item() == pytest.approx(max(others), abs=1e-9) and best.item() > min(others) + 1e-3


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"at most 262,144 joint codes, .* but found 10.30"):
        CategoricalVAE(D, 30, 10, prior="joint")
    with pytest.raises(ValueError, match=r"Expected a prior among uniform, .* but found 'normal'"):
        CategoricalVAE(D, N, K, prior="normal")
    with pytest.raises(ValueError, match=r"shape \(N, K\) = \(3, 2\), but found one of \(2, 2\)"):
        CategoricalVAE(D, N, K, prior=MixturePrior(2, 2))
    with pytest.raises(ValueError, match="Expected learn_prior=False with the prior 'tree'"):
        CategoricalVAE(D, N, K, prior="tree", learn_prior=True)
    with pytest.raises(ValueError, match=r"Expected a network among mlp, transformer, .* but found 'conv'"):
        CategoricalVAE(D, N, K, prior="autoregressive[network=conv]")
    with pytest.raises(ValueError, match=r"Expected options that the network 'mlp' has, but got an .* 'width'"):
        CategoricalVAE(D, N, K, prior="autoregressive[width=8]")
    with pytest.raises(ValueError, match=r"Expected a width that num_heads divides, .* width=8, num_heads=3"):
        CategoricalVAE(D, N, K, prior="autoregressive[network=transformer,width=8,num_heads=3]")
    with pytest.raises(ValueError, match="Expected no options of the prior 'uniform'"):
        CategoricalVAE(D, N, K, prior="uniform[network=mlp]")
    large = CategoricalVAE(D, 30, 10, (4,), prior="mixture").double()
    expected = large.guide_logits(DATA).log_softmax(-1)
    torch.testing.assert_close(guide_log_probs(large, DATA), expected)  # no sum and no draw is needed
    with pytest.raises(ValueError, match="so that its KL has to be sampled"):
        model, guide, elbo = estimator("gumbel-softmax").bind(large)
        elbo.loss(model, guide, DATA)
    pyro.clear_param_store()
    vae = new_vae("tree")
    with pytest.raises(ValueError, match="independent digits to mix with the uniform"):
        unimix(lambda: pyro.sample("z", coupled(vae.prior)), share=0.1)()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", coupled(vae.prior), infer={"temperature": 0.5})

    with pytest.raises(ValueError, match="a guide whose digits are drawn one by one"):
        ExactELBO().loss(vae.model, guide, DATA)
    for handler in (relax, straight_through):
        with pytest.raises(ValueError, match="a guide whose digits are drawn one by one"):
            Trace_ELBO().loss(handler(vae.model), handler(guide), DATA)


def test_a_prior_of_ones_own_and_one_that_replaces_another():
    class Equal(CodePrior):
        """A prior under which all digits are equal."""

        def log_prob(self, codes):
            return codes.prod(-2).sum(-1).clamp_min(1e-30).log() - math.log(K)

        def draw(self, count):
            return one_hot(torch.randint(K, (count, 1)), K).expand(-1, N, -1).to(self.uniform)

    vae = CategoricalVAE(D, N, K, (4,), prior=Equal(N, K)).double()
    equal = torch.stack([vae.observation(vae.decoder(CODES[s])).log_prob(DATA) for s in (0, 7)])
    torch.testing.assert_close(exact.log_evidence(vae, DATA), equal.logsumexp(0) - math.log(K))
    vae.prior = None
    uniform = exact.log_evidence(vae, DATA)
    vae.prior = MixturePrior(N, K, num_components=1).double()
    torch.nn.init.zeros_(vae.prior.logits)
    torch.testing.assert_close(exact.log_evidence(vae, DATA), uniform)
