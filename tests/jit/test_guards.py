"""Guards notice every change of the objects that a program refers to, and nothing else."""

import array
import types
from collections import deque

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from pyro_gvae.jit import guards
from pyro_gvae.programs.kept import Kept
from pyro_gvae.runtime.compat.torch import hooks_of


def test_guards_follow_what_a_program_refers_to():
    inner = {"numbers": [1.0, {2.0}]}
    layer = nn.Linear(2, 2)

    def program(x, default=layer):
        return inner, x

    guard = guards.Guard([program])
    assert set(map(id, guard.tensors.values())) == set(map(id, layer.parameters()))
    assert guard.holds()
    inner["numbers"][1].add(3.0)
    assert not guard.holds()
    assert guard.changes()


def test_cached_findings_are_no_state():
    class Loss:
        def __init__(self):
            self.kept = Kept()
            self.other = {}

    loss = Loss()
    guard = guards.Guard([loss])
    loss.kept.find("key", (), {}, lambda: torch.ones(1))
    assert guard.holds() and not guard.tensors
    loss.other["key"] = torch.ones(1)
    assert not guard.holds()


class Slots:
    __slots__ = ("__hidden", "shown")

    def __init__(self):
        self.shown, self.__hidden = 1.0, [2.0]

    def hide(self, value):
        self.__hidden.append(value)


class Plain:
    def __init__(self, **values):
        vars(self).update(values)


config = types.ModuleType("config")
config.inner = types.ModuleType("config.inner")
config.inner.beta = 1.0


def reads_configuration():
    return config.inner.beta


def rename(thing):
    thing["other"] = thing.pop("name")


def move(thing):
    """All values stay the same and in order, but one moves from one list to the next."""
    thing[1].insert(0, thing[0].pop())


def closure():
    def program():
        return inner

    inner = 1.0
    return program


#: Name -> a function that makes an object, and a change of it.
CHANGES = {
    "a deque": (lambda: deque([1.0]), lambda thing: thing.append(2.0)),
    "an empty deque": (deque, lambda thing: thing.append(2.0)),
    "a key": (lambda: {"name": 1.0}, rename),
    "an item that moves": (lambda: [[1.0, 2.0], [3.0]], move),
    "a default": (lambda: lambda x=1.0: x, lambda thing: setattr(thing, "__defaults__", (2.0,))),
    "an attribute of a function": (lambda: lambda: None, lambda thing: setattr(thing, "note", 1.0)),
    "a closure": (closure, lambda thing: setattr(thing.__closure__[0], "cell_contents", 2.0)),
    "a closure that is emptied": (closure, lambda thing: delattr(thing.__closure__[0], "cell_contents")),
    "a slot": (Slots, lambda thing: setattr(thing, "shown", 2.0)),
    "a hidden slot": (Slots, lambda thing: thing.hide(3.0)),
    "a slot that is deleted": (Slots, lambda thing: delattr(thing, "shown")),
    "a small array": (lambda: np.ones(3), lambda thing: thing.fill(2.0)),
    "an array of 256 KiB": (lambda: np.zeros(2**15), lambda thing: thing.__setitem__(-1, 1.0)),
    "an array of objects": (lambda: np.array([1.0, "a"], object), lambda thing: thing.__setitem__(0, 2.0)),
    "bytes": (lambda: bytearray(b"a"), lambda thing: thing.append(1)),
    "Python's arrays": (lambda: array.array("d", [1.0]), lambda thing: thing.append(1.0)),
    "a module's attribute": (lambda: reads_configuration, lambda thing: setattr(config.inner, "beta", object())),
    "a gradient's hook": (lambda: nn.Linear(2, 2), lambda thing: thing.weight.register_hook(torch.neg)),
    "a plate": (
        lambda: Plain(plate=pyro.plate("data", 3)),
        lambda thing: setattr(thing, "plate", pyro.plate("data", 4)),
    ),
    "an object made anew": (
        lambda: Plain(inner=Plain(number=1.0)),
        lambda thing: setattr(thing, "inner", Plain(number=2.0)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name):
    make, change = CHANGES[name]
    thing = make()
    guard = guards.Guard([thing])
    hooks = list(map(hooks_of, guard.tensors.values()))
    assert guard.holds()
    change(thing)
    assert not guard.holds() or list(map(hooks_of, guard.tensors.values())) != hooks


def test_large_arrays_that_can_be_written_are_unguarded():
    """This includes views of arrays, and views of objects that are not arrays."""
    small, large = np.zeros(9), np.zeros(2**16)
    kept, view = np.zeros(2**16), large.view()
    kept.flags.writeable = view.flags.writeable = False
    from_bytes, from_tensor = np.frombuffer(bytes(2**19)), torch.zeros(2**17).numpy()
    assert not guards.Guard([small, kept, kept[1:], from_bytes]).unguarded
    for each in (large, view, from_tensor):
        (said,) = guards.Guard([Plain(array=each)]).unguarded
        assert f"found a large array of shape {each.shape}" in said


def test_hooks_of_all_modules_are_noticed():
    guard = guards.Guard([nn.Linear(2, 2)])
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        assert not guard.holds()
    finally:
        handle.remove()
    assert guard.holds()


@pytest.mark.parametrize(
    "make",
    [lambda: pyro.plate("data", 3), lambda: Plain(number=1.0, inner=Plain(word="a")), lambda: deque([1.0, (2.0, "b")])],
)
def test_the_same_made_anew_is_no_change(make):
    thing = Plain(part=make())
    guard = guards.Guard([thing])
    thing.part = make()
    assert guard.holds()
