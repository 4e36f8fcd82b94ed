"""One number that is not finite, or far too large: the step is left out, and the task is learned all the same."""

import pytest

from tests.faults.checks import assert_finite, score
from tests.faults.environments import BAD_VALUES, one_of_three
from tests.helpers import ALGORITHMS, make_model

N_STEPS, N_ENVS, N_UPDATES = 24, 3, 12

QUANTITIES = ("reward", "observation", "first observation", "terminal observation")
CASES = [
    *[
        (ALGORITHMS[1], quantity, value, wrapper)
        for quantity in QUANTITIES
        for value, wrapper in (("nan", "plain"), ("inf", "normalized"), ("huge", "normalized"), ("minus_huge", "plain"))
    ],
    # What they share need not be gone through for each.
    *[(algorithm, "reward", "nan", "normalized") for algorithm in ALGORITHMS],
    *[(algorithm, "observation", "inf", "plain") for algorithm in ALGORITHMS],
    *[(algorithm, "terminal observation", "huge", "normalized") for algorithm in ALGORITHMS],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("algorithm", "quantity", "value", "wrapper"), CASES)
def test_the_step_is_left_out(algorithm: type, quantity: str, value: str, wrapper: str) -> None:
    steps = range(100, 120) if quantity == "terminal observation" else range(100, 101)
    env = one_of_three(quantity, BAD_VALUES[value], steps, wrapper)
    model = make_model(algorithm, env, n_steps=N_STEPS).learn(N_UPDATES * N_STEPS * N_ENVS)
    # An observation spoils the transition that led to it and the one that starts from it; three episodes end.
    expected = {"reward": 1, "observation": 2, "first observation": 1, "terminal observation": 3}
    assert model.n_faulty_steps == expected[quantity]
    assert_finite(model, largest=1e6)
    assert score(model) > -0.45


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_below_the_threshold_a_number_is_data(algorithm: type) -> None:
    """As with stock, 1e17 in a statistic flattens all that follows."""
    env = one_of_three("observation", 1e17, range(100, 101), "normalized")
    model = make_model(algorithm, env, n_steps=N_STEPS).learn(N_UPDATES * N_STEPS * N_ENVS)
    assert model.n_faulty_steps == 0
    assert_finite(model, largest=1e40)
    assert score(model) < -0.45
