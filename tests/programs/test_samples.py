"""Samples with one latent changed: earlier latents, latents that depend on it, and others."""

import pyro
import pytest
import torch
from pairs import DATA, PROGRAMS, B, Program, one_hot, two_layers_model

from pyro_gvae.programs.draws import lay_out_draws
from pyro_gvae.programs.noise import by_gumbel_noise, independent, largest
from pyro_gvae.programs.runs import bind
from pyro_gvae.programs.samples import Change, changed, sample

P = 7


def drawn(name, draw_codes=by_gumbel_noise):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    runs = bind(*PROGRAMS[name][:2], DATA)
    layout = lay_out_draws(runs)
    return runs, layout, sample(runs, layout, P, draw_codes)


@pytest.mark.parametrize(
    ("program", "first"),
    [
        ("two layers, bottom-up", "below"),
        ("a code given a normal", "y"),
        ("a normal given a code", "y"),
        ("a global code", "style"),
        ("nested plates", "topic"),
        ("a subsampled plate with scale and mask", "y"),
    ],
)
def test_a_latent_that_is_given_its_own_code_changes_nothing(program, first):
    runs, layout, base = drawn(program)
    rows = torch.arange(P).roll(2)
    found = changed(runs, layout, base, Change(first, base.codes[first][rows], rows), largest)
    for name, value in base.values.items():
        torch.testing.assert_close(found.values[name], value[rows], rtol=1e-12, atol=1e-12)
    for name, codes in base.codes.items():
        assert torch.equal(found.codes[name], codes[rows])
    torch.testing.assert_close(found.q.log_prob(found.codes), base.q.log_prob(base.codes)[rows])


def strong_guide(x):
    with pyro.plate("data", len(x)):
        below = pyro.sample("below", one_hot(torch.zeros(4).double()))
        pyro.sample("top", one_hot(5 * below[..., :3]))


def test_earlier_latents_are_kept_and_later_ones_follow(monkeypatch):
    monkeypatch.setitem(PROGRAMS, "strong", Program(two_layers_model, strong_guide))
    runs, layout, base = drawn("strong")
    assert list(base.values) == ["below", "top"] and base.later("below") == ["top"] and base.later("top") == []
    other = base.codes["below"].roll(1, -1)
    found = changed(runs, layout, base, Change("below", other), largest)
    assert torch.equal(found.codes["below"], other)
    assert 0 < (found.codes["top"] != base.codes["top"]).any(-1).sum() < P * B  # some change, with the same noise
    last = changed(runs, layout, base, Change("top", base.codes["top"].roll(1, -1)), largest)
    assert torch.equal(last.codes["below"], base.codes["below"])
    assert not torch.equal(last.q.log_prob(last.codes), base.q.log_prob(base.codes))


def test_what_does_not_depend_on_the_changed_latent_stays():
    runs, layout, base = drawn("two layers, independent", independent)  # no noise is needed, as nothing is drawn again
    found = changed(runs, layout, base, Change("below", base.codes["below"].roll(1, -1)), largest)
    assert torch.equal(found.codes["top"], base.codes["top"])
