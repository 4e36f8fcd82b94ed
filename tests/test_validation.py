"""Bad input: a ``ValueError`` that names the argument, the constraint and the value, wherever it comes from."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from tests.environments import ACTION_SPACES, OBSERVATION_SPACES, ToyEnv, toy_vec_env
from tests.helpers import (
    ALGORITHMS,
    MEASURING,
    assert_same,
    make_model,
    state_of,
    train,
)

NAN, INF = math.nan, math.inf
NATURAL = (NPG, AdaptiveTRPO)
TRPO_ONLY, PPO_ONLY, NPG_ONLY = (AdaptiveTRPO,), (AdaptivePPO,), (NPG,)

# Who has the argument, its name, its constraint, and values that violate it.
OUT_OF_RANGE: list[tuple[tuple[type[Any], ...], str, str, list[Any]]] = [
    (ALGORITHMS, "learning_rate", ">= 0", [-1e-3, NAN, INF, "1e-3", None, True]),
    (ALGORITHMS, "n_steps", ">= ", [0, -1, 2.5, "32", None, True]),
    (ALGORITHMS, "batch_size", ">= ", [0, -1, 2.5, "32", None]),
    (ALGORITHMS, "gamma", ">= 0 and <= 1", [-0.1, 1.1, NAN, "0.99", None]),
    (ALGORITHMS, "gae_lambda", ">= 0 and <= 1", [-0.1, 1.1, NAN, "0.95", None]),
    (ALGORITHMS, "sde_sample_freq", ">= -1", [-2, 0.5, "4"]),
    (ALGORITHMS, "use_sde", "True or False", ["no", 1, None]),
    (ALGORITHMS, "normalize_advantage", "True or False", ["no", 1, None]),
    (ALGORITHMS, "seed", ">= 0", [-1, 0.5, "0"]),
    (NATURAL, "cg_max_steps", ">= 1", [0, 1.5, "15"]),
    (NATURAL, "cg_damping", ">= 0", [-0.1, NAN, "0.1"]),
    (NATURAL, "n_critic_updates", ">= 0", [-1, 1.5, "10"]),
    (NATURAL, "sub_sampling_factor", ">= 1", [0, 1.5, "2"]),
    (NATURAL, "sub_sampling_factor", "leave at least 2 of 64 samples", [33, 1000]),
    (NATURAL, "cg_residual_tol", ">= 0 and < 1", [-0.1, 1.0, NAN, "0.1"]),
    (NATURAL, "fisher_sub_sampling_factor", ">= 1", [0, 1.5, "2"]),
    (NPG_ONLY, "actor_step_size", ">= 0", [-0.1, NAN, "0.3", None]),
    (TRPO_ONLY, "line_search_shrinking_factor", "> 0 and < 1", [0.0, 1.0, NAN, "0.8"]),
    (TRPO_ONLY, "line_search_max_iter", ">= 1", [0, 1.5, "10"]),
    (TRPO_ONLY, "target_kl", "> 0", [0.0, -0.01, NAN, INF, "0.01", None]),
    (TRPO_ONLY, "target_kl", "within radius_bounds", [1e-7, 100.0]),
    (TRPO_ONLY, "n_reused_rollouts", ">= 1", [0, 1.5, "3", None]),
    (MEASURING, "radius_rule", "one of", ["noise-aware", None, 1, ["fixed"]]),
    (MEASURING, "radius_window", ">= 1", [0, 2.5, "50", None, True]),
    (MEASURING, "radius_bounds", "0 < lower < upper", [(0.0, 2.0), (2.0, 0.5), (0.5, NAN), (0.5, INF), (-1.0, 2.0)]),
    (MEASURING, "radius_bounds", "two numbers", [(0.5,), (0.1, 0.5, 2.0), 5, None, ("low", "high"), "0.1,2"]),
    (MEASURING, "rollback_z", "> 0", [0.0, -1.0, NAN, INF, "3"]),
    (MEASURING, "improvement_estimator", "one of", ["rollouts", None, 1]),
    (PPO_ONLY, "n_epochs", ">= 1", [0, 1.5, "10"]),
    (PPO_ONLY, "batch_size", ">= 2", [1]),
    (PPO_ONLY, "clip_range", ">= 0", [-0.1, NAN, "0.2", None]),
    (PPO_ONLY, "clip_range_vf", "> 0", [0.0, -0.1, NAN, "0.2"]),
    (PPO_ONLY, "ent_coef", "finite", [NAN, INF, "0.01", None]),
    (PPO_ONLY, "vf_coef", ">= 0", [-0.5, NAN, "0.5"]),
    (PPO_ONLY, "max_grad_norm", "> 0", [0.0, -0.5, NAN, "0.5"]),
    (PPO_ONLY, "target_kl", "> 0", [0.0, -0.01, NAN, "0.01"]),
    (PPO_ONLY, "radius_bounds", "contain 1", [(2.0, 3.0), (0.1, 0.5)]),
]
CASES = [
    pytest.param(algorithm, name, constraint, value, id=f"{algorithm.__name__}-{name}-{value!r}")
    for algorithms, name, constraint, values in OUT_OF_RANGE
    for algorithm in algorithms
    for value in values
]


def says(name: str, constraint: str, value: Any) -> str:
    return rf"{name} must .*{re.escape(constraint)}.*, got .*{re.escape(repr(value))}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Any], Path]:
    """A file of each algorithm."""
    folder = tmp_path_factory.mktemp("saved")
    for algorithm in ALGORITHMS:
        make_model(algorithm).save(folder / algorithm.__name__)
    return {algorithm: folder / algorithm.__name__ for algorithm in ALGORITHMS}


@pytest.mark.parametrize(("algorithm", "name", "constraint", "value"), CASES)
def test_constructor(algorithm: type[Any], name: str, constraint: str, value: Any) -> None:
    with pytest.raises(ValueError, match=says(name, constraint, value)):
        make_model(algorithm, **{name: value})


@pytest.mark.parametrize(("algorithm", "name", "constraint", "value"), CASES)
def test_load(saved: dict[type[Any], Path], algorithm: type[Any], name: str, constraint: str, value: Any) -> None:
    with pytest.raises(ValueError, match=says(name, constraint, value)):
        algorithm.load(saved[algorithm], device="cpu", **{name: value})


@pytest.mark.parametrize(
    ("algorithm", "line"),
    [
        *[(algorithm, "learning_rate: 1e-3") for algorithm in ALGORITHMS],
        *[(algorithm, "n_steps: 1e3") for algorithm in ALGORITHMS],
        *[(algorithm, "normalize_advantage: 'false'") for algorithm in ALGORITHMS],
        *[(algorithm, "rollback_z: 'None'") for algorithm in MEASURING],
        *[(algorithm, "radius_rule: noise-aware") for algorithm in MEASURING],
        *[(algorithm, "radius_bounds: (1e-6, 50.0)") for algorithm in MEASURING],
        (NPG, "actor_step_size: 3e-1"),
        (AdaptiveTRPO, "target_kl: 1e-2"),
        (AdaptivePPO, "clip_range: 2e-1"),
    ],
)
def test_what_yaml_takes_for_a_string(algorithm: type[Any], line: str) -> None:
    """YAML reads 1e-3 as a string."""
    arguments = yaml.safe_load(line)
    ((name, value),) = arguments.items()
    assert isinstance(value, str)
    with pytest.raises(ValueError, match=says(name, "", value)):
        make_model(algorithm, **arguments)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stats_window_size(algorithm: type[Any], value: int) -> None:
    with pytest.raises(ValueError, match=says("stats_window_size", ">= 1", value)):
        make_model(algorithm, stats_window_size=value)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_single_sample_is_no_batch(algorithm: type[Any], normalize_advantage: bool) -> None:
    with pytest.raises(ValueError, match=r"n_steps.* must be .*>= 2, got 1"):
        make_model(algorithm, ToyEnv(), n_steps=1, normalize_advantage=normalize_advantage)


@pytest.mark.parametrize("algorithm", NATURAL)
def test_a_last_mini_batch_of_one_is_warned_about(algorithm: type[Any]) -> None:
    with pytest.warns(UserWarning, match="batch_size=21 leaves a last mini-batch of one"):
        make_model(algorithm, batch_size=21)


ACCEPTED: list[tuple[tuple[type[Any], ...], dict[str, Any]]] = [
    (ALGORITHMS, {"learning_rate": 0.0}),
    (ALGORITHMS, {"learning_rate": 0}),
    (ALGORITHMS, {"learning_rate": np.float64(1e-3), "n_steps": np.int64(32), "batch_size": np.int32(32)}),
    (ALGORITHMS, {"gamma": 1.0, "gae_lambda": 1}),
    (ALGORITHMS, {"gamma": 0.0, "gae_lambda": 0}),
    (ALGORITHMS, {"seed": None}),
    (ALGORITHMS, {"normalize_advantage": False}),
    (NATURAL, {"cg_damping": 0.0, "cg_residual_tol": 0.0, "cg_max_steps": 1}),
    (NATURAL, {"n_critic_updates": 0}),
    (NATURAL, {"batch_size": 10_000}),
    (NATURAL, {"batch_size": 1}),
    (NPG_ONLY, {"actor_step_size": np.float64(0.1)}),
    (TRPO_ONLY, {"target_kl": np.float64(0.01), "radius_window": np.int64(5)}),
    (TRPO_ONLY, {"target_kl": 1, "radius_bounds": [1, 2]}),
    (TRPO_ONLY, {"line_search_max_iter": 2, "line_search_shrinking_factor": 0.5}),
    (MEASURING, {"rollback_z": None}),
    (MEASURING, {"rollback_z": 2, "radius_window": 1}),
    (PPO_ONLY, {"normalize_advantage": False, "batch_size": 1}),
    (PPO_ONLY, {"clip_range": 0, "clip_range_vf": None, "target_kl": None, "ent_coef": -0.01, "vf_coef": 0.0}),
]


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        pytest.param(algorithm, arguments, id=f"{algorithm.__name__}-{arguments}")
        for algorithms, arguments in ACCEPTED
        for algorithm in algorithms
    ],
)
def test_borderline_values_are_accepted(tmp_path: Path, algorithm: type[Any], arguments: dict[str, Any]) -> None:
    model = make_model(algorithm, **arguments)
    train(model, 2)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=toy_vec_env(), device="cpu")
    assert_same(state_of(loaded.policy), state_of(model.policy))
    assert len(train(loaded, 1)) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learning_rate_schedule(algorithm: type[Any]) -> None:
    updates = train(make_model(algorithm, learning_rate=lambda left: np.float32(1e-2) * left), 4)
    rates = [update.logged["train/learning_rate"] for update in updates]
    assert rates == pytest.approx([7.5e-3, 5e-3, 2.5e-3, 0.0])


def test_actor_step_size_schedule() -> None:
    """The length of a step is proportional to α; nothing moves at 0."""
    seen: list[float] = []

    def schedule(left: float) -> np.float64:
        seen.append(left)
        return np.float64(0.4 * left)

    model = make_model(NPG, actor_step_size=schedule)
    updates = train(model, 4)
    assert seen == [0.75, 0.5, 0.25, 0.0]
    assert updates[-1].kl == 0.0
    halves = [train(make_model(NPG, actor_step_size=alpha), 1)[0].kl for alpha in (0.02, 0.01)]
    assert halves[0] == pytest.approx(4.0 * halves[1], rel=0.05)


def test_clip_range_schedule() -> None:
    seen: list[float] = []
    model = make_model(
        AdaptivePPO, clip_range=lambda left: seen.append(left) or 0.2 * left, clip_range_vf=lambda _: 0.1
    )
    updates = train(model, 4)
    assert set(seen) == {0.75, 0.5, 0.25, 0.0}
    for update, left in zip(updates, (0.75, 0.5, 0.25, 0.0), strict=True):
        assert update.logged["train/clip_range"] == pytest.approx(0.2 * left * update.logged["train/radius"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unsupported_spaces(algorithm: type[Any]) -> None:
    with pytest.raises((ValueError, AssertionError), match="action"):
        make_model(algorithm, ToyEnv(action_space=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])))
    with pytest.raises((ValueError, AssertionError), match="action"):
        make_model(algorithm, ToyEnv(action_space=spaces.Dict({"a": spaces.Discrete(2)})))
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make_model(algorithm, toy_vec_env(observation_space=OBSERVATION_SPACES["dict"]))
    with pytest.raises(ValueError, match="gSDE"):
        make_model(algorithm, toy_vec_env(action_space=ACTION_SPACES["discrete"]), use_sde=True)


class PolicyOfAnotherDistribution(ActorCriticPolicy):
    """One whose KL and Fisher matrix are not known here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_dist = MaskableCategoricalDistribution(3)


class FrozenActor(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("value" in name)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("NoSuchPolicy", "NoSuchPolicy"),
        (DQNPolicy, "policy must be an ActorCriticPolicy.*DQNPolicy"),
        (RecurrentActorCriticPolicy, "policy must be an ActorCriticPolicy.*RecurrentActorCriticPolicy"),
        (MaskableActorCriticPolicy, "policy must be an ActorCriticPolicy.*MaskableActorCriticPolicy"),
        (PolicyOfAnotherDistribution, "action distribution must be one of .*, got MaskableCategoricalDistribution"),
        (FrozenActor, "policy must have trainable parameters that influence its action distribution"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unsupported_policies(algorithm: type[Any], policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(algorithm, toy_vec_env(action_space=ACTION_SPACES["discrete"]), policy)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_train_by_itself(algorithm: type[Any]) -> None:
    with pytest.raises(RuntimeError, match="call learn"):
        make_model(algorithm).train()
