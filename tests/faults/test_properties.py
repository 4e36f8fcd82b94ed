"""Any valid combination of spaces, networks, batches and hyperparameters trains; any invalid one is refused at once."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import VecEnv

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.core.line_search import StepStatus
from tests.environments import ACTION_SPACES, OBSERVATION_SPACES, toy_vec_env
from tests.faults.checks import assert_finite
from tests.faults.environments import PARTS, normalized
from tests.helpers import Update, actor_of, differs, train

pytestmark = pytest.mark.filterwarnings("ignore")

Arguments = dict[str, Any]

# Fixed examples: a property that fails once must fail again.
examples = settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)

WIDTHS = st.lists(st.integers(1, 9), max_size=2)
NETWORKS = st.one_of(WIDTHS, st.fixed_dictionaries({"pi": WIDTHS, "vf": WIDTHS}))
# Networks for images take their time.
OBSERVATIONS = {name: space for name, space in OBSERVATION_SPACES.items() if name not in ("image", "dict")} | {
    "dict": PARTS
}


def fractions(**bounds: Any) -> st.SearchStrategy[float]:
    return st.floats(0.0, 1.0, allow_nan=False, **bounds)


def powers(smallest: int, largest: int) -> st.SearchStrategy[float]:
    return st.floats(smallest, largest).map(lambda exponent: 10.0**exponent)


@st.composite
def spaces_and_batches(draw: st.DrawFn, least_batch: int = 1) -> Arguments:
    """An environment, and what every algorithm takes."""
    action = draw(st.sampled_from(tuple(ACTION_SPACES)))
    n_envs = draw(st.integers(1, 3))
    n_steps = draw(st.integers(2, 12))
    observation = draw(st.sampled_from(tuple(OBSERVATIONS)))
    env: VecEnv = toy_vec_env(n_envs, observation_space=OBSERVATIONS[observation], action_space=ACTION_SPACES[action])
    if observation in ("vector", "dict") and draw(st.booleans()):
        env = normalized(env)
    return {
        "policy": "MultiInputPolicy" if observation == "dict" else "MlpPolicy",
        "env": env,
        "n_steps": n_steps,
        "batch_size": draw(st.integers(least_batch, 2 * n_steps * n_envs)),
        "gamma": draw(fractions()),
        "gae_lambda": draw(fractions()),
        "learning_rate": draw(st.one_of(st.just(0.0), powers(-5, -1))),
        "use_sde": action == "box" and draw(st.booleans()),
        "sde_sample_freq": draw(st.sampled_from([-1, 1, 3])),
        "seed": draw(st.integers(0, 100)),
        "policy_kwargs": {
            "net_arch": draw(NETWORKS),
            "activation_fn": draw(st.sampled_from([th.nn.Tanh, th.nn.ReLU])),
            "share_features_extractor": draw(st.booleans()),
            "ortho_init": draw(st.booleans()),
        },
    }


def natural() -> st.SearchStrategy[Arguments]:
    return st.fixed_dictionaries(
        {
            "cg_max_steps": st.integers(1, 20),
            "cg_damping": st.one_of(st.just(0.0), powers(-6, 1)),
            "cg_residual_tol": fractions(exclude_max=True),
            "n_critic_updates": st.integers(0, 4),
            "normalize_advantage": st.booleans(),
            "sub_sampling_factor": st.sampled_from([1, 1, 2, 5]),
            "fisher_sub_sampling_factor": st.integers(1, 20),
        }
    )


def measuring() -> st.SearchStrategy[Arguments]:
    return st.fixed_dictionaries(
        {
            "radius_rule": st.sampled_from(["noise_aware", "textbook", "fixed"]),
            "radius_window": st.integers(1, 60),
            "rollback_z": st.one_of(st.none(), powers(-2, 1)),
            "improvement_estimator": st.sampled_from(["rollout", "episodes", "surrogate"]),
        }
    )


def npg() -> st.SearchStrategy[Arguments]:
    return st.fixed_dictionaries({"actor_step_size": st.one_of(st.just(0.0), powers(-3, 1))})


def trpo() -> st.SearchStrategy[Arguments]:
    return st.fixed_dictionaries(
        {
            "target_kl": powers(-5, 1),
            "line_search_shrinking_factor": fractions(exclude_min=True, exclude_max=True),
            "line_search_max_iter": st.integers(1, 12),
            "radius_bounds": st.sampled_from([(1e-6, 50.0), [1e-6, 10.0], (1e-5, 1e6)]),
        }
    )


def ppo() -> st.SearchStrategy[Arguments]:
    return st.fixed_dictionaries(
        {
            "n_epochs": st.integers(1, 4),
            "clip_range": st.one_of(st.just(0.0), powers(-3, 1)),
            "clip_range_vf": st.one_of(st.none(), powers(-3, 1)),
            "normalize_advantage": st.booleans(),
            "ent_coef": st.one_of(st.just(0.0), powers(-4, 0)),
            "vf_coef": st.one_of(st.just(0.0), powers(-2, 1)),
            "max_grad_norm": powers(-2, 2),
            "target_kl": st.one_of(st.none(), powers(-4, 0)),
            "radius_bounds": st.sampled_from([(1e-2, 1e2), [0.9, 1.1], (1.0, 1e6)]),
        }
    )


def merged(*parts: st.SearchStrategy[Arguments]) -> st.SearchStrategy[Arguments]:
    return st.tuples(*parts).map(lambda found: fitted({key: value for part in found for key, value in part.items()}))


def n_samples(arguments: Arguments) -> int:
    return int(arguments["n_steps"] * arguments["env"].num_envs)


def fitted(arguments: Arguments) -> Arguments:
    """Two samples at least are left after sub-sampling."""
    if "sub_sampling_factor" in arguments:
        arguments["sub_sampling_factor"] = min(arguments["sub_sampling_factor"], n_samples(arguments) // 2)
    return arguments


VALID: dict[type[Any], st.SearchStrategy[Arguments]] = {
    NPG: merged(spaces_and_batches(), natural(), npg()),
    AdaptiveTRPO: merged(spaces_and_batches(), natural(), measuring(), trpo()),
    AdaptivePPO: merged(spaces_and_batches(least_batch=2), measuring(), ppo()),
}


def assert_sound(model: Any, updates: list[Update]) -> None:
    """Finite after each update; the actor moves with accepted steps alone, and AdaptiveTRPO's keep to the radius."""
    assert len(updates) == 3
    assert_finite(model, largest=math.inf)
    for update in updates:
        assert all(bool(th.isfinite(value).all()) for value in update.after.values())
        moved = differs(actor_of(model, update.before), actor_of(model, update.after))
        assert not (moved and update.status is StepStatus.INVALID)
        if isinstance(model, AdaptiveTRPO) and update.status is StepStatus.ACCEPTED:
            assert_within(model, update, update.logged["train/radius"])


def assert_within(model: Any, update: Update, radius: float) -> None:
    assert update.logged["train/kl_divergence"] <= radius
    # PyTorch's own formula is infinite where a probability underflows.
    if model.sub_sampling_factor == 1 and math.isfinite(update.kl):
        assert update.kl <= radius * (1.0 + 1e-3) + 1e-6


@pytest.mark.parametrize("algorithm", VALID)
def test_what_is_valid_trains(algorithm: type[Any]) -> None:
    @examples
    @given(VALID[algorithm])
    def trains(arguments: Arguments) -> None:
        model = algorithm(device="cpu", **arguments)
        assert_sound(model, train(model, 3))

    trains()


NOT_FINITE = [math.nan, math.inf, -math.inf]
NOT_POSITIVE = [0.0, -1.0, *NOT_FINITE, "0.1"]
NOT_COUNTS = [0, -1, 1.5, None, "2"]
SHARED: dict[str, list[Any]] = {
    "n_steps": NOT_COUNTS,
    "batch_size": NOT_COUNTS,
    "gamma": [-0.1, 1.1, *NOT_FINITE, None],
    "gae_lambda": [-0.1, 1.1, *NOT_FINITE, None],
    "learning_rate": [-1e-3, *NOT_FINITE, "1e-3"],
    "use_sde": ["yes", 2],
    "seed": [-1, 0.5],
}
NATURAL: dict[str, list[Any]] = {
    "cg_max_steps": NOT_COUNTS,
    "cg_damping": [-0.1, *NOT_FINITE],
    "cg_residual_tol": [-0.1, 1.0, *NOT_FINITE],
    "n_critic_updates": [-1, 0.5, None],
    "normalize_advantage": ["yes", 2],
    "sub_sampling_factor": [*NOT_COUNTS, 1000],
    "fisher_sub_sampling_factor": NOT_COUNTS,
}
MEASURING: dict[str, list[Any]] = {
    "radius_rule": ["none", None, 3],
    "radius_window": NOT_COUNTS,
    "radius_bounds": [(2.0, 1.0), (0.0, 1.0), (1.0, math.inf), 3.0, None],
    "rollback_z": NOT_POSITIVE,
    "improvement_estimator": ["none", None],
}
INVALID: dict[type[Any], dict[str, list[Any]]] = {
    NPG: {**SHARED, **NATURAL, "actor_step_size": [-0.1, *NOT_FINITE]},
    AdaptiveTRPO: {
        **SHARED,
        **NATURAL,
        **MEASURING,
        "target_kl": [*NOT_POSITIVE, 1e-9, 1e3],
        "line_search_shrinking_factor": [0.0, 1.0, *NOT_FINITE],
        "line_search_max_iter": NOT_COUNTS,
    },
    AdaptivePPO: {
        **SHARED,
        **MEASURING,
        "n_epochs": NOT_COUNTS,
        "clip_range": [-0.1, math.nan],
        "clip_range_vf": [0.0, -1.0, math.nan, "0.1"],
        "normalize_advantage": ["yes", 2],
        "ent_coef": NOT_FINITE,
        "vf_coef": [-0.1, *NOT_FINITE],
        "max_grad_norm": [-1.0, math.nan, "0.1"],
        "target_kl": [-1.0, math.nan, "0.1"],
    },
}


@pytest.mark.parametrize("algorithm", VALID)
def test_what_is_not_valid_is_refused_at_construction(algorithm: type[Any]) -> None:
    """One argument out of range among others that are fine; the error names it."""

    def with_bad_value(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        return st.tuples(st.just(name), st.sampled_from(INVALID[algorithm][name]))

    @examples
    @given(VALID[algorithm], st.sampled_from(sorted(INVALID[algorithm])).flatmap(with_bad_value))
    def refused(arguments: Arguments, bad: tuple[str, Any]) -> None:
        name, value = bad
        with pytest.raises(ValueError, match=rf"{name}.* must |gSDE"):  # the latter by SB3
            algorithm(device="cpu", **{**arguments, name: value})

    refused()


Broken = tuple[Arguments, str]


def too_few_left(arguments: Arguments) -> Broken:
    return {"sub_sampling_factor": n_samples(arguments) // 2 + 1}, "sub_sampling_factor must leave at least 2 of"


def radius_out_of_bounds(arguments: Arguments) -> Broken:
    return {"radius_bounds": (2.0 * arguments["target_kl"], 100.0)}, "target_kl must be within radius_bounds"


def factor_out_of_bounds(arguments: Arguments) -> Broken:
    return {"radius_bounds": (1.5, 2.0)}, "radius_bounds must contain 1"


def nothing_to_normalise(arguments: Arguments) -> Broken:
    return {"batch_size": 1, "normalize_advantage": True}, "batch_size must be an integer >= 2"


def single_sample(arguments: Arguments) -> Broken:
    spoilt = {"env": toy_vec_env(1), "n_steps": 1, "policy": "MlpPolicy", "use_sde": False, "normalize_advantage": True}
    return spoilt, "n_steps.* must be .*>= 2"


def noise_without_a_gaussian(arguments: Arguments) -> Broken:
    env = toy_vec_env(action_space=ACTION_SPACES["discrete"])
    return {"env": env, "policy": "MlpPolicy", "use_sde": True}, "gSDE"


def policy_of_other_observations(arguments: Arguments) -> Broken:
    return {"env": toy_vec_env(observation_space=PARTS), "policy": "MlpPolicy"}, "MultiInputPolicy"


def action_space_unknown(arguments: Arguments) -> Broken:
    space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    return {"env": toy_vec_env(action_space=space), "policy": "MlpPolicy"}, "action"


COMBINATIONS = [
    *itertools.product(
        VALID, [single_sample, noise_without_a_gaussian, policy_of_other_observations, action_space_unknown]
    ),
    *itertools.product([NPG, AdaptiveTRPO], [too_few_left]),
    (AdaptiveTRPO, radius_out_of_bounds),
    *itertools.product([AdaptivePPO], [factor_out_of_bounds, nothing_to_normalise]),
]


@pytest.mark.parametrize(("algorithm", "spoil"), COMBINATIONS)
def test_what_does_not_go_together_is_refused(algorithm: type[Any], spoil: Callable[[Arguments], Broken]) -> None:
    """Each by itself would be fine."""

    @settings(examples, max_examples=4)
    @given(VALID[algorithm])
    def refused(arguments: Arguments) -> None:
        broken, told = spoil(arguments)
        with pytest.raises((ValueError, AssertionError), match=told):  # the latter by SB3, of spaces
            algorithm(device="cpu", **{**arguments, **broken})

    refused()
