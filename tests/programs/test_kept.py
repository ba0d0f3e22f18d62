"""Findings about a program are kept for arguments of the same kind, and for no others."""

import torch

from pyro_gvae.programs.kept import Kept


def test_what_was_found_out_is_kept_for_the_same_kind_of_arguments():
    kept, made = Kept(), []

    def find(*args, program=torch.neg, **kwargs):
        return kept.find(program, args, kwargs, lambda: made.append(1) or len(made))

    x = torch.ones(2, 3)
    assert find(x) == find(torch.zeros(2, 3)) == 1
    others = [((x.T,), {}), ((x.double(),), {}), ((x, 1), {}), ((x, True), {}), ((), {"x": x}), ((x,), {"y": None})]
    assert [find(*args, **kwargs) for args, kwargs in others] == [2, 3, 4, 5, 6, 7]
    assert [find(*args, **kwargs) for args, kwargs in others] == [2, 3, 4, 5, 6, 7]
    assert find(x, program=torch.abs) == 8
    assert find([x]) == 9 and find([x]) == 10  # the contents of a list are unknown
