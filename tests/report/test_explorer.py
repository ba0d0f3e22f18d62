"""The explorer in a real browser: its numbers are those of torch; clicks, drawing and switching models work."""

import copy
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyro_gvae import CategoricalVAE, TrainConfig, exact, fit
from pyro_gvae.compare.run import compare
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.evaluate.impute import predictive_means
from pyro_gvae.models.bernoulli_vae import BernoulliVAE
from pyro_gvae.models.networks import conv_networks, mlp_decoder, mlp_encoder
from pyro_gvae.models.table import Column, TableObservation
from pyro_gvae.report.explorer import Shown, explorer, write_explorer

H, W, N, K = 4, 5, 2, 3
D = H * W


class Oblique(nn.Module):
    """A network with an operation that pages do not know."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.network(x).cumsum(-1)


def model(observation: str = "bernoulli", prior: str = "independent", **options: Any) -> CategoricalVAE:
    torch.manual_seed(3)
    made = CategoricalVAE(D, N, K, (7,), observation, prior=prior, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
        made.prior_logits.copy_(torch.randn(N, K))
    return made.eval()


def networks(kind: str) -> dict[str, nn.Module]:
    if kind == "convolutional":
        encoder, decoder = conv_networks((H, W), N, K, hidden=(7,))
        return {"encoder": encoder, "decoder": decoder}
    activations = [nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.Softplus(), nn.LeakyReLU(0.2), nn.ELU(0.7)]
    hidden = [layer for activation in activations for layer in (nn.Linear(6, 6), activation)]
    norms = nn.Sequential(nn.BatchNorm1d(6), nn.LayerNorm(6))
    nn.init.uniform_(norms[0].running_mean), nn.init.uniform_(norms[0].running_var, 0.5, 2.0)
    encoder = nn.Sequential(nn.Linear(D, 6), norms, *hidden, nn.Linear(6, N * K), nn.Unflatten(-1, (N, K)))
    return {"encoder": encoder}


Opened = Callable[[Path], AbstractContextManager[Any]]
DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli": torch.round,
    "continuous-bernoulli": lambda u: u,
    "gaussian": lambda u: 4 * u - 2,
    "categorical": lambda u: (3 * u).round(),
}


def images(observation: str = "bernoulli") -> Tensor:
    return DATA[observation](torch.rand(6, D, generator=torch.Generator().manual_seed(5)))


def shown(page: Any) -> dict[str, float]:
    """Return every number of the page by name, unrounded."""
    pairs = page.eval_on_selector_all("dl dt", "all => all.map(dt => [dt.textContent, dt.nextSibling.dataset.value])")
    return {name: float(value) for name, value in pairs if name != "code"}


def code_of(page: Any) -> list[int]:
    return [int(digit) for digit in page.inner_text("#code-numbers dd").split()]


def expected(vae: CategoricalVAE, x: Tensor, code: list[int]) -> dict[str, float]:
    x = x.double().unsqueeze(0)
    z = nn.functional.one_hot(torch.tensor(code), K).double().unsqueeze(0)
    elbo, evidence = (value.item() for value in exact.bounds(vae, x))
    with torch.no_grad():
        likelihood = vae.observation(vae.decoder(z)).log_prob(x).item()
        log_q = vae.encoder(vae.observation.inputs(x)).log_softmax(-1)
        independent = (vae.prior_logits.log_softmax(-1) * z).sum().item()
        prior = independent if vae.prior is None else vae.prior.log_prob(z).item()
        guide = (log_q * z).sum().exp().item()
    found = {"log p(x), exact": evidence, "ELBO, exact": elbo, "KL(q ‖ posterior)": evidence - elbo}
    found |= {"log p(x | z)": likelihood, "log p(z)": prior, "q(z | x)": guide}
    return found | {"p(z | x), exact": torch.tensor(likelihood + prior - evidence).exp().item()}


def assert_shown(page: Any, vae: CategoricalVAE, x: Tensor) -> None:
    numbers = shown(page)
    for name, value in expected(vae, x, code_of(page)).items():
        assert numbers[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("observation", "options"),
    [
        ("bernoulli", {}),
        ("bernoulli", {"prior": "mixture"}),
        ("bernoulli", networks("convolutional")),
        ("bernoulli", networks("others")),
        ("continuous-bernoulli", {}),
        ("gaussian", {"scale": 0.7}),
        ("categorical", {"num_levels": 4}),
    ],
)
def test_its_numbers_are_those_of_torch(
    observation: str, options: dict[str, Any], opened: Opened, tmp_path: Path
) -> None:
    vae, x = model(observation, **options), images(observation)
    with opened(explorer([Shown("m", vae)], x, (H, W), title="t", path=tmp_path / "page.html")) as page:
        assert_shown(page, vae, x[0])
        page.click("#next")
        assert_shown(page, vae, x[1])
        page.click("[aria-label^='latent 1, category 2']")
        assert code_of(page)[1] == 2
        assert_shown(page, vae, x[1])


@pytest.mark.slow
def test_bits_are_tiles_too(opened: Opened, tmp_path: Path) -> None:
    torch.manual_seed(3)
    vae, x = BernoulliVAE(D, 4, (7,)).double().eval(), images()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(2 * torch.randn_like(parameter))
    with opened(explorer([Shown("m", vae)], x, (H, W), title="t", path=tmp_path / "page.html")) as page:
        page.click("[aria-label^='latent 1, category 1']")
        code = code_of(page)
        assert code[1] == 1
        z = torch.tensor([code], dtype=torch.float64)
        elbo, evidence = (value.item() for value in exact.bounds(vae, x[:1].double()))
        with torch.no_grad():
            likelihood = vae.observation(vae.decoder(z)).log_prob(x[:1].double()).item()
            prior = torch.distributions.Bernoulli(logits=vae.prior_logits).log_prob(z).sum().item()
            guide = torch.distributions.Bernoulli(logits=vae.encoder(x[:1].double())).log_prob(z).sum().exp().item()
        numbers = shown(page)
        found = {"log p(x), exact": evidence, "ELBO, exact": elbo, "log p(x | z)": likelihood, "log p(z)": prior}
        for name, value in (found | {"q(z | x)": guide}).items():
            assert numbers[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
def test_what_a_visitor_does(opened: Opened, tmp_path: Path) -> None:
    first, x = model(), images()
    second = model(encoder=Oblique(first.encoder), decoder=Oblique(first.decoder))  # tables replace them
    shown_models = [Shown("one", first), Shown("other", second)]
    path = explorer(shown_models, x, (H, W), title="</script><b>t", path=tmp_path / "page.html")
    with opened(path) as page:
        assert page.inner_text("h1") == "</script><b>t"
        page.click("#clear")
        box = page.locator("#datum").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 10, box["y"] + box["height"] / 8)
        page.mouse.down()
        page.mouse.up()
        drawn = torch.zeros(D)
        drawn[0] = 1
        assert_shown(page, first, drawn)
        page.keyboard.press("b")
        posterior = exact.posterior(first, drawn.double().unsqueeze(0), num_codes=1)
        assert code_of(page) == posterior.codes[0, 0].argmax(-1).tolist()
        page.click("#from")
        page.keyboard.press("r")
        page.click("#to")
        assert 1 <= page.locator("#walk button").count() <= N + 1
        page.locator("[aria-label^='latent 0, category 0']").focus()
        page.keyboard.press("ArrowRight")
        assert code_of(page)[0] == 1
        page.click("#sort")
        page.locator("#gallery button").first.click()
        worst = exact.bounds(first, x.double()).elbo.argmin().item()
        assert_shown(page, first, x[worst])
        page.select_option("#model", "1")
        page.wait_for_function("document.body.dataset.ready === 'true'")
        assert_shown(page, second, x[worst])
        assert not page.locator("#clear").is_visible() and not page.locator("#soft").is_visible()
        page.select_option("#model", "0")
        page.fill("#temperature", "-2")
        soft = shown(page)
        assert soft["log p(x | this z)"] == pytest.approx(soft["log p(x | hard z)"], abs=1e-2)  # nearly one-hot
        assert float(page.evaluate("document.body.dataset.milliseconds")) < 1000
        assert re.fullmatch(r".*#model=0&image=\d+&code=\d+\.\d+", page.url)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["independent", "autoregressive"])
def test_a_page_of_too_many_codes_samples(prior: str, opened: Opened, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = CategoricalVAE(D, 20, K, (7,), prior=prior).eval()
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = images()
    with opened(explorer([Shown("m", vae)], x, (H, W), title="t", path=tmp_path / "page.html")) as page:
        numbers = shown(page)
        assert "log p(x), exact" not in numbers and not page.locator("#atlas").is_visible()
        page.keyboard.press("r")  # a code that was drawn from the prior
        z = nn.functional.one_hot(torch.tensor([code_of(page)]), K).float()
        with torch.no_grad():
            log_p = (vae.prior_logits.log_softmax(-1) * z).sum() if vae.prior is None else vae.prior.log_prob(z)
        assert shown(page)["log p(z)"] == pytest.approx(log_p.item(), abs=1e-4)
        elbo = torch.stack([-vae_loss(vae, x[:1]) for _ in range(100)])
        assert numbers["ELBO, 32 samples"] == pytest.approx(elbo.mean().item(), abs=5 * elbo.std().item() / 32**0.5)


TABLE = TableObservation(
    [
        Column("<b>sex", "binary", ("f", "m")),
        Column("city", "categorical", ("Oslo", "Paris", "Rome")),
        Column("height", "real", (), 170.0, 9.0),
        Column("wage", "positive", (), 3.0, 0.5),
        Column("visits", "count", (), 1.0, 0.7),
    ]
)
NAN = torch.nan
ROWS = torch.tensor([[1.0, 2.0, 0.5, -0.4, 3.0], [0.0, NAN, NAN, 1.2, NAN], [1.0, 0.0, -1.0, 0.0, 0.0]])


@pytest.mark.slow
def test_a_table_has_a_distribution_of_each_column_and_missing_cells_are_imputed(
    opened: Opened, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    vae = CategoricalVAE(5, N, K, (7,), TABLE, prior="independent").double().eval()
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.7)

    def assert_imputed(x: Tensor) -> None:
        assert_shown(page, vae, x)
        means = predictive_means(vae, x.double().unsqueeze(0)).means[0].split([2, 3, 2, 2, 2])
        for place, own in enumerate(means):
            said = page.locator(f"#datum .cell >> nth={place} >> output").get_attribute("data-values")
            found = torch.tensor([float(value) for value in said.split()], dtype=torch.float64)
            torch.testing.assert_close(found, own if x[place].isnan() else own[:0], rtol=1e-5, atol=1e-4)

    path = explorer([Shown("m", vae)], ROWS, (1, 5), title="t", path=tmp_path / "page.html")
    with opened(path) as page:
        assert page.locator("#datum label").all_inner_texts() == ["<b>sex", "city", "height", "wage", "visits"]
        assert_imputed(ROWS[0])
        page.keyboard.press("n")
        assert_imputed(ROWS[1])
        assert page.input_value("#cell-2") == "" and "probably" in page.inner_text("#datum .cell >> nth=1")
        page.fill("#cell-2", "179")
        page.select_option("#cell-1", label="Paris")
        page.fill("#cell-3", "-1")  # no wage: the row stays
        changed = torch.tensor([0.0, 1.0, 1.0, 1.2, NAN])
        assert_imputed(changed)
        page.focus("[aria-label^='latent 0, category 0']")
        page.keyboard.press("ArrowRight")
        assert code_of(page)[0] == 1
        assert_shown(page, vae, changed)
        page.click("#clear")
        assert_imputed(torch.full((5,), NAN))
        assert shown(page)["log p(x), exact"] == pytest.approx(0.0, abs=1e-6)
        assert page.locator("#gallery button").count() == 3


@pytest.mark.slow
def test_words_stand_where_pictures_would(opened: Opened, tmp_path: Path) -> None:
    words = ("tea", "rose", "moon", "rain")
    torch.manual_seed(1)
    vae = CategoricalVAE(4, N, K, (7,), "multinomial").double().eval()
    for parameter in vae.parameters():
        nn.init.normal_(parameter)
    x = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    path = explorer([Shown("m", vae)], x, (1, 4), vocabulary=words, title="t", path=tmp_path / "page.html")
    with opened(path) as page:
        assert_shown(page, vae, x[0])
        assert page.locator("#datum span").all_inner_texts() == ["tea × 2", "moon"]
        z = nn.functional.one_hot(torch.tensor(code_of(page)), K).double().unsqueeze(0)
        best = vae.decoder(z)[0].argsort(descending=True)
        assert page.locator("#picture .level > span:first-child").all_inner_texts() == [words[d] for d in best]
        page.fill("#own-text", "Rain, rain: a ROSE.")
        assert_shown(page, vae, torch.tensor([0.0, 1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="Expected 4 words, one for each count of a datum, but found 3"):
        explorer([Shown("m", vae)], x, (1, 4), vocabulary=words[:3], title="t", path=path)


def test_a_program_of_ones_own_takes_the_weights_of_its_run(tmp_path: Path) -> None:
    networks = {"encoder": Oblique(mlp_encoder(D, (7,), N, K)), "decoder": Oblique(mlp_decoder(N, K, (7,), D))}
    vae = CategoricalVAE(D, N, K, **networks)
    config = TrainConfig(stages="exact:1steps", batch_size=6)
    fit(vae, images(), config, output=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="which is code of yours"):
        write_explorer(tmp_path / "run")
    page = write_explorer(str(tmp_path / "run"), program=CategoricalVAE(D, N, K, **copy.deepcopy(networks)))
    [described] = json.loads(re.search(r'id="payload">(.*?)</script>', page.read_text())[1])["models"]
    assert (
        described["decoder"] is None and described["table"][1] == K**N * D and described["posteriors"][1] == 6 * N * K
    )


def vae_loss(vae: CategoricalVAE, x: Tensor) -> Tensor:
    from pyro_gvae import discretize

    with torch.no_grad():
        return discretize(vae)(x)[0]


def test_what_a_page_cannot_hold_is_refused(tmp_path: Path) -> None:
    vae = CategoricalVAE(D, 20, K, (7,))
    vae.decoder = Oblique(vae.decoder)
    with pytest.raises(ValueError, match=r"Expected a decoder made of operations .* found a Oblique and 3\^20"):
        explorer([Shown("m", vae)], images(), (H, W), title="t", path=tmp_path / "page.html")


@pytest.mark.parametrize(
    ("count", "shape", "sentence"),
    [
        (0, (H, W), "Expected one model or more"),
        (1, (H, W + 1), r"Expected images \(M, H \* W\) of shape \(4, 6\), but found \(6, 20\)"),
        (1, None, "Expected models of finite numbers"),
    ],
)
def test_what_is_no_model_of_such_images_is_refused(
    count: int, shape: tuple[int, int] | None, sentence: str, tmp_path: Path
) -> None:
    vae = CategoricalVAE(D, N, K, (7,))
    if shape is None:
        nn.init.constant_(vae.decoder[-1].bias, torch.inf)
    with pytest.raises(ValueError, match=sentence):
        explorer([Shown("m", vae)] * count, images(), shape or (H, W), title="t", path=tmp_path / "page.html")


def test_more_categories_than_a_page_can_show_are_refused(tmp_path: Path) -> None:
    vae = CategoricalVAE(D, 1000, 5, (2,))
    with pytest.raises(ValueError, match=r"Expected at most 4096 categories .* but found 1000 latents of 5"):
        explorer([Shown("m", vae)], images(), (H, W), title="t", path=tmp_path / "page.html")


def test_a_model_that_diverged_is_left_out(tmp_path: Path, unrendered: None) -> None:
    config = CompareConfig(
        estimators=("gumbel-softmax", "exact"), seeds=(0,), num_latents=N, num_categories=K, hidden=(7,), epochs=1,
        evaluations=1, output=tmp_path / "run",
    )  # fmt: skip
    run = compare(config)
    assert (run / "explorer.html").exists() and 'href="explorer.html"' in (run / "report.html").read_text()
    path = run / "cells" / "exact-seed0" / "weights.safetensors"
    save_file({name: weight * torch.nan for name, weight in load_file(path).items()}, path)
    with pytest.warns(RuntimeWarning, match="Expected finite weights, but found NaN or infinity in exact-seed0"):
        page = write_explorer(run)
    assert '"name": "gumbel-softmax"' in page.read_text() and '"name": "exact"' not in page.read_text()
    with pytest.raises(ValueError, match=r"Expected the name of a page, but found the folder .* Try .*explorer.html"):
        write_explorer(run, output=tmp_path)


@pytest.mark.slow
def test_a_drawn_datum_does_not_go_to_a_model_without_an_encoder(opened: Opened, tmp_path: Path) -> None:
    first, x = model(), images()
    second = model(encoder=Oblique(first.encoder))
    path = explorer([Shown("one", first), Shown("other", second)], x, (H, W), title="t", path=tmp_path / "page.html")
    with opened(path) as page:
        page.click("#clear")
        assert "image=" not in page.url  # an address cannot describe a drawing
        page.select_option("#model", "1")
        page.wait_for_function("document.body.dataset.ready === 'true'")
        assert_shown(page, second, x[0])
        assert page.inner_text("#temperature-value") == "0.67"  # the model's own


def certain_model(scale: float) -> tuple[CategoricalVAE, CategoricalVAE]:
    """Return a model whose encoder is certain of one code, and the same with matrices in half precision.

    The layers of its decoder are scaled by `scale` and its inverse, which changes no number of the exact model.
    """
    vae = model()
    with torch.no_grad():
        for weight in vae.encoder[-2].parameters():
            weight.mul_(1000)
        for layer, factor in ((vae.decoder[-3], scale), (vae.decoder[-1], 1 / scale)):
            layer.weight.mul_(factor)
        vae.decoder[-3].bias.mul_(scale)
        rounded = copy.deepcopy(vae)
        for layer in (*rounded.encoder, *rounded.decoder):
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(layer.weight.clamp(-65504, 65504).half())
    return vae, rounded


@pytest.mark.parametrize("is_bad", [False, True])
def test_large_networks_are_rounded_and_a_page_says_what_that_changes(
    is_bad: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_gvae.report.explorer.MOST_BYTES", 1000)
    vae, rounded = certain_model(1e-6 if is_bad else 1.0)
    before, x = copy.deepcopy(vae.state_dict()), images()
    change = (exact.elbo(rounded, x.double()) - exact.elbo(vae, x.double())).abs().max().item()
    assert is_bad == (change > 0.05)
    warns = pytest.warns(RuntimeWarning, match="changes the ELBO of a datum under m by up to")
    with warns if is_bad else nullcontext():
        page = explorer([Shown("m", vae)], x, (H, W), title="t", path=tmp_path / "page.html").read_text()
    [described] = json.loads(re.search(r'id="payload">(.*?)</script>', page)[1])["models"]
    assert described["rounding"] == pytest.approx(change, rel=1e-4)
    assert f"by up to {change:.2g} nats" in page and ("pyro-gvae evaluate" in page) == is_bad
    assert all(torch.equal(weight, before[name]) for name, weight in vae.state_dict().items())


@pytest.mark.slow
def test_a_page_of_rounded_weights_computes_with_them(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_gvae.report.explorer.MOST_BYTES", 1000)
    vae, rounded = certain_model(1e-6)
    with pytest.warns(RuntimeWarning, match="half precision"):
        path = explorer([Shown("m", vae)], images(), (H, W), title="t", path=tmp_path / "page.html")
    with opened(path) as page:
        assert_shown(page, rounded, images()[0])
