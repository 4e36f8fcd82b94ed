"""One thread and one seed: results depend on both."""

import random

import numpy as np
import pytest
import torch as th

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what SB3 draws from
    th.manual_seed(0)
    th.distributions.Distribution.set_default_validate_args(True)  # torch.compile leaves that switched off
