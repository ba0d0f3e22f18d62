"""Setup shared by tests and doctests: isolated global state and a fixed seed."""

from collections.abc import Iterator

import pyro
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def present_devices() -> Iterator[None]:
    """Seed no absent devices: torch would note each seed for later, with its stack, which takes a millisecond."""
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Start with an empty param store and seed 0; restore dtype, settings and random state afterwards."""
    dtype = torch.get_default_dtype()
    random_state = pyro.util.get_rng_state()
    settings = pyro.settings.get()
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        yield
    torch.set_default_dtype(dtype)
    pyro.util.set_rng_state(random_state)
    pyro.settings.set(**settings)
