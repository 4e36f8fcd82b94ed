"""NaN, infinity and absurdly large numbers in what the environment returns."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.search import StepStatus
from sb3_trustregion.recording import STOP_AFTER, UnusableDataError
from tests.faults.checks import assert_finite, score, statistics_of
from tests.faults.environments import BAD_VALUES, QUANTITIES, WRAPPERS, faulty, healthy, one_of_three
from tests.helpers import ALGORITHMS, actor_of, assert_same, differs, make_model, state_of, train

pytestmark = pytest.mark.filterwarnings(
    "ignore:You have specified a mini-batch size", "ignore:.*updates without a policy step in a row"
)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)

N_STEPS = 24
# One step in five of the first rollout.
SOME_STEPS = range(3, 20, 5)
EVERY_STEP = range(100_000)


def warned(caught: list[warnings.WarningMessage]) -> list[str]:
    return [text for text in (str(one.message) for one in caught) if "left out of training" in text]


@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("quantity", [*QUANTITIES, "first observation"])
@pytest.mark.parametrize("wrapper", [*WRAPPERS, "plain of dict", "normalized of dict"])
@each_algorithm
def test_some_steps_of_one_environment(algorithm: type[Any], wrapper: str, quantity: str, value: str) -> None:
    steps = EVERY_STEP if quantity == "terminal observation" else SOME_STEPS
    kind, _, of_what = wrapper.partition(" of ")
    env = one_of_three(quantity, BAD_VALUES[value], steps, kind, as_dict=of_what == "dict")
    model = make_model(algorithm, env, "MultiInputPolicy" if of_what == "dict" else "MlpPolicy", n_steps=N_STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        updates = train(model, 3)

    assert_finite(model, largest=1e6)
    # The fault is one environment's in a few steps: all other steps are learned from, in every update.
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 3
    assert all(differs(actor_of(model, update.before), actor_of(model, update.after)) for update in updates)
    (warning,) = warned(caught)
    named = "observation" if quantity == "first observation" else quantity
    assert warning.startswith(f"the {named} was not finite, or above 1e+18, in environment(s) [1]")
    # A bad observation spoils two transitions, the one that led to it and the one that starts from it.
    in_stack = 2 if "stacked" in wrapper else 1
    expected = {
        "reward": len(SOME_STEPS),
        "observation": 2 * len(SOME_STEPS),
        "terminal observation": 3 * N_STEPS // 8,
        "first observation": 1,
    }[quantity]
    counts = [update.logged["train/n_faulty_steps"] for update in updates]
    assert expected <= counts[-1] <= in_stack * expected
    assert quantity == "terminal observation" or counts[0] == counts[-1]
    assert model.n_invalid == 0
