"""The states of all global random-number generators, as tensors and plain numbers."""

import random
from typing import Any

import numpy as np
import torch as th


def random_states() -> dict[str, Any]:
    """The states of the generators of Python, numpy and torch, on all devices."""
    # NPY002: SB3 draws from numpy's legacy generator.
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "numpy": [str(name), th.as_tensor(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Bring the generators back to what ``random_states`` gave."""
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    th.set_rng_state(states["torch"].cpu())
    if th.cuda.is_available():  # there may have been more or fewer devices
        th.cuda.set_rng_state_all([state.cpu() for state in states["cuda"][: th.cuda.device_count()]])
