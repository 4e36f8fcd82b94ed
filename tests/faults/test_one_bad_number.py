"""One number that is not finite, or far too large: the step is left out, and the task is learned all the same."""

import pytest

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from tests.faults.checks import assert_finite, score
from tests.faults.environments import BAD_VALUES, one_of_three
from tests.helpers import make_model, shared

N_STEPS, N_ENVS, N_UPDATES = 24, 3, 12

QUANTITIES = ("reward", "observation", "first observation", "terminal observation")
CASES = [
    *shared(
        [
            ("reward", "nan", "normalized"),
            ("observation", "inf", "plain"),
            ("terminal observation", "huge", "normalized"),
        ]
    ),
    *((AdaptiveTRPO, quantity, "minus_huge", "normalized") for quantity in QUANTITIES),
    (AdaptiveTRPO, "reward", "minus_huge", "plain"),
    *((AdaptiveTRPO, quantity, "inf", "normalized") for quantity in ("first observation", "observation")),
    *((AdaptiveTRPO, "terminal observation", value, "plain") for value in ("nan", "inf")),
    *((algorithm, "terminal observation", "huge", "normalized") for algorithm in (AdaptivePPO, PenaltyPPO)),
    (AdaptivePPO, "observation", "inf", "plain"),
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
@pytest.mark.parametrize(
    ("algorithm", "quantity"),
    [*((AdaptiveTRPO, quantity) for quantity in QUANTITIES[1:]), (AdaptivePPO, "observation")],
)
def test_what_the_policy_makes_numbers_of_is_data(algorithm: type, quantity: str) -> None:
    """Of -1e30 units that saturate make one, with gradients of zero."""
    steps = range(100, 120) if quantity == "terminal observation" else range(100, 101)
    env = one_of_three(quantity, BAD_VALUES["minus_huge"], steps, "plain")
    model = make_model(algorithm, env, n_steps=N_STEPS).learn(N_UPDATES * N_STEPS * N_ENVS)
    assert model.n_faulty_steps == 0
    assert_finite(model, largest=1e6)
    assert score(model) > -0.45


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_below_the_threshold_a_number_is_data(algorithm: type) -> None:
    """As with stock, 1e17 in a statistic flattens all that follows."""
    env = one_of_three("observation", 1e17, range(100, 101), "normalized")
    model = make_model(algorithm, env, n_steps=N_STEPS).learn(N_UPDATES * N_STEPS * N_ENVS)
    assert model.n_faulty_steps == 0
    assert_finite(model, largest=1e40)
    assert score(model) < -0.45
