"""One thread and one seed: results depend on both."""

import random

import numpy as np
import pytest
import torch as th

th.set_num_threads(1)

# What these see runs lines that the other tests run as well (but for some 20 of 8,000): to trace them takes two fifths
# of their time. Coverage is thus at least what is reported.
NOT_TRACED = (
    *("cases", "docs", "faults", "test_calibration.py", "test_callbacks.py", "test_commands.py"),
    *("test_conjugate_gradient.py", "test_constructors.py", "test_determinism.py", "test_fisher.py"),
    *("test_hyperparameters.py", "test_improvement.py", "test_learning.py", "test_line_search.py", "test_radius.py"),
    *("test_recorder.py", "test_samplers.py", "test_saving.py", "test_spaces.py", "test_speed.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The marker is pytest-cov's. Tests of the Zoo come first: so one worker has all of them, and sets up once."""
    for item in items:
        if item.path.parent.name in NOT_TRACED or item.path.name in NOT_TRACED:
            item.add_marker("no_cover")
    items.sort(key=lambda item: item.path.parent.name != "zoo")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what SB3 draws from
    th.manual_seed(0)
    th.distributions.Distribution.set_default_validate_args(True)  # torch.compile leaves that switched off
