"""Bad input: a ``ValueError`` that names the argument, the constraint and the value, wherever it comes from."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.common.validation import check_bool, check_choice, check_integer, check_number, check_schedule
from tests.environments import ACTION_SPACES, OBSERVATION_SPACES, ToyEnv, toy_vec_env
from tests.helpers import ALGORITHMS, MEASURING, all_finite, assert_same, make_model, shared, state_of, train

NAN, INF = math.nan, math.inf
NATURAL = (NPG, AdaptiveTRPO)
TRPO_ONLY, PPO_ONLY, NPG_ONLY, PENALTY_ONLY = (AdaptiveTRPO,), (AdaptivePPO,), (NPG,), (PenaltyPPO,)
PPO = (AdaptivePPO, PenaltyPPO)

# Who has the argument, its name, its constraint, and values that violate it.
OUT_OF_RANGE: list[tuple[tuple[type[Any], ...], str, str, list[Any]]] = [
    (ALGORITHMS, "learning_rate", ">= 0", [-1e-3, NAN, INF, "1e-3", None]),
    (ALGORITHMS, "n_steps", ">= ", [0, -1, 2.5, 32.0, "32", None]),
    (ALGORITHMS, "batch_size", ">= ", [0, -1, 2.5, np.float64(32.0), "32", None]),
    (ALGORITHMS, "gamma", ">= 0 and <= 1", [-0.1, 1.1, NAN, INF, "0.99", None, [0.9], np.array([0.9, 0.9])]),
    (ALGORITHMS, "gae_lambda", ">= 0 and <= 1", [-0.1, 1.1, NAN, "0.95", None]),
    (ALGORITHMS, "sde_sample_freq", "a number", ["4", NAN]),
    (ALGORITHMS, "use_sde", "True or False", ["no", 2, NAN, [True, False]]),
    (ALGORITHMS, "normalize_advantage", "True or False", ["no", "", 0.5, np.str_("False")]),
    (ALGORITHMS, "seed", ">= 0 and <= 4294967295", [-1, 0.5, "0", 2**32]),
    (NATURAL, "cg_max_steps", ">= 1", [0, 1.5, "15"]),
    (NATURAL, "cg_damping", ">= 0", [-0.1, NAN, INF, "0.1"]),
    (NATURAL, "n_critic_updates", ">= 0", [-1, 1.5, "10"]),
    (NATURAL, "sub_sampling_factor", ">= 1", [0, 1.5, "2"]),
    (NATURAL, "sub_sampling_factor", "leave at least 2 of 64 samples", [33, 1000]),
    (NATURAL, "cg_residual_tol", ">= 0 and < 1", [-0.1, 1.0, NAN, "0.1"]),
    (NATURAL, "fisher_sub_sampling_factor", ">= 1", [0, 1.5, "2"]),
    (NPG_ONLY, "actor_step_size", ">= 0", [-0.1, NAN, INF, "0.3", None]),
    (TRPO_ONLY, "line_search_shrinking_factor", "> 0 and < 1", [0.0, 1.0, NAN, "0.8"]),
    (TRPO_ONLY, "line_search_max_iter", ">= 1", [0, 1.5, "10"]),
    (TRPO_ONLY, "target_kl", "> 0", [0.0, -0.01, NAN, INF, "0.01", None]),
    (TRPO_ONLY, "target_kl", "within radius_bounds", [1e-7, 100.0]),
    (MEASURING, "radius_rule", "one of", ["noise-aware", None, 1, ["fixed"]]),
    (MEASURING, "radius_window", ">= 1", [0, 2.5, "50", None]),
    (MEASURING, "radius_prior", "> 0", [0.0, -1, math.nan, "0.01"]),
    (MEASURING, "radius_bounds", "0 < lower < upper", [(0.0, 2.0), (2.0, 0.5), (0.5, NAN), (0.5, INF), (-1.0, 2.0)]),
    (MEASURING, "radius_bounds", "two numbers", [(0.5,), (0.1, 0.5, 2.0), 5, None, ("low", "high"), "0.1,2"]),
    (MEASURING, "rollback_z", "> 0", [0.0, -1.0, NAN, INF, "3"]),
    (MEASURING, "improvement_estimator", "one of", ["rollouts", None, 1]),
    (PPO, "n_epochs", ">= 1", [0, 1.5, "10"]),
    (PPO, "batch_size", ">= 2", [1]),
    (PPO_ONLY, "clip_range", ">= 0", [-0.1, NAN, -INF, "0.2", None]),
    (PPO, "clip_range_vf", "> 0", [0.0, -0.1, NAN, "0.2"]),
    (PPO, "ent_coef", "finite", [INF, -INF]),
    (PPO, "ent_coef", "a number", [NAN, "0.01", None]),
    (PPO, "vf_coef", ">= 0", [-0.5, NAN, INF, "0.5"]),
    (PPO, "max_grad_norm", ">= 0", [-0.5, NAN, "0.5", None]),
    (PPO_ONLY, "target_kl", ">= 0", [-0.01, NAN, "0.01"]),
    (PENALTY_ONLY, "target_kl", "> 0", [0.0, -0.01, NAN, INF, "0.01", None]),
    (PENALTY_ONLY, "kl_coef", ">= 0.0001 and <= 1e+06", [0.0, -1.0, NAN, INF, 1e7, "1", None]),
    (PENALTY_ONLY, "kl_tolerance", ">= 1", [0.5, NAN, INF, "1.5", None]),
    (PENALTY_ONLY, "kl_coef_factor", ">= 1", [0.5, NAN, INF, "2", None]),
    (PENALTY_ONLY, "early_stop", "> 1.5", [1.5, 0.0, NAN, "4"]),
    (PPO_ONLY, "radius_bounds", "contain 1", [(2.0, 3.0), (0.1, 0.5)]),
]


def chief(algorithms: tuple[type[Any], ...]) -> type[Any]:
    """For which all values are tried: what checks them is the same for all that have the argument."""
    return next(one for one in (AdaptiveTRPO, AdaptivePPO, NPG, PenaltyPPO) if one in algorithms)


CASES = [
    pytest.param(algorithm, name, constraint, value, id=f"{algorithm.__name__}-{name}-{value!r}")
    for algorithms, name, constraint, values in OUT_OF_RANGE
    for algorithm in algorithms
    for value in (values if algorithm is chief(algorithms) else values[:1])
]
# What a file is loaded with is checked as what a constructor is given.
FIRST_CASES = [
    pytest.param(algorithm, name, constraint, values[0], id=f"{algorithm.__name__}-{name}-{values[0]!r}")
    for algorithms, name, constraint, values in OUT_OF_RANGE
    for algorithm in {chief(algorithms): None, algorithms[-1]: None}
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


@pytest.mark.parametrize(("algorithm", "name", "constraint", "value"), FIRST_CASES)
def test_load(saved: dict[type[Any], Path], algorithm: type[Any], name: str, constraint: str, value: Any) -> None:
    with pytest.raises(ValueError, match=says(name, constraint, value)):
        algorithm.load(saved[algorithm], device="cpu", **{name: value})


@pytest.mark.parametrize(
    ("algorithm", "line"),
    [
        *[(algorithm, "learning_rate: 1e-3") for algorithm in ALGORITHMS],
        (AdaptiveTRPO, "n_steps: 1e3"),
        (AdaptiveTRPO, "normalize_advantage: 'false'"),
        (AdaptiveTRPO, "rollback_z: 'None'"),
        (AdaptiveTRPO, "radius_rule: noise-aware"),
        (AdaptiveTRPO, "radius_bounds: (1e-6, 50.0)"),
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


@pytest.mark.parametrize(("algorithm", "value"), shared([-1, 1.5, "100"]))
def test_stats_window_size(algorithm: type[Any], value: Any) -> None:
    with pytest.raises(ValueError, match=says("stats_window_size", ">= 0", value)):
        make_model(algorithm, stats_window_size=value)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_single_sample_is_no_batch(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"n_steps.* must be .*>= 2.*, got 1"):
        make_model(algorithm, ToyEnv(), n_steps=1)


@pytest.mark.parametrize("algorithm", NATURAL)
def test_a_last_mini_batch_of_one_is_warned_about(algorithm: type[Any]) -> None:
    with pytest.warns(UserWarning, match="batch_size=21 is no factor of n_steps"):
        make_model(algorithm, batch_size=21)


def kinds(value: Any) -> list[Any]:
    """The same number, as Python, numpy and torch write it."""
    if isinstance(value, bool):
        return [value, int(value), float(value), np.bool_(value), np.array(value), np.int64(value), th.tensor(value)]
    if isinstance(value, int):
        return [value, np.int64(value), np.int16(value), np.uint8(value), np.array(value), th.tensor(value)]
    return [value, np.float16(value), np.float32(value), np.float64(value), np.array(value), th.tensor(value)]


# Arguments, most of stock PPO or TRPO, with a value; ``inf`` and others at the edge are below.
OF_ANY_KIND: list[tuple[tuple[type[Any], ...], dict[str, Any]]] = [
    (ALGORITHMS, {"learning_rate": 0.125, "gamma": 0.5, "gae_lambda": 0.75}),
    (ALGORITHMS, {"n_steps": 16, "batch_size": 16, "seed": 3, "stats_window_size": 10, "verbose": 0}),
    (NATURAL, {"cg_max_steps": 5, "n_critic_updates": 1, "sub_sampling_factor": 2, "fisher_sub_sampling_factor": 2}),
    (NATURAL, {"cg_damping": 0.125, "cg_residual_tol": 0.25}),
    (NPG_ONLY, {"actor_step_size": 0.125}),
    (TRPO_ONLY, {"target_kl": 0.03125, "line_search_shrinking_factor": 0.5, "line_search_max_iter": 5}),
    (MEASURING, {"rollback_z": 2.0, "radius_window": 5, "radius_prior": 0.02}),
    (PPO_ONLY, {"clip_range": 0.25, "clip_range_vf": 0.25, "ent_coef": 0.125, "vf_coef": 0.5, "target_kl": 0.5}),
    (PPO, {"n_epochs": 2}),
    (PENALTY_ONLY, {"target_kl": 0.5, "kl_coef": 0.25, "kl_tolerance": 2.0, "kl_coef_factor": 4.0, "early_stop": 8.0}),
]


def of_any_kind(algorithm: type[Any]) -> list[dict[str, Any]]:
    """All that an algorithm takes of those, in each kind of number."""
    parts = [arguments for algorithms, arguments in OF_ANY_KIND if algorithm in algorithms]
    merged = {name: value for part in parts for name, value in part.items()}
    return [dict(zip(merged, column, strict=True)) for column in zip(*map(kinds, merged.values()), strict=True)]


SWITCHES: dict[str, Any] = {"use_sde": True, "normalize_advantage": False}
ACCEPTED: list[tuple[tuple[type[Any], ...], dict[str, Any]]] = [
    *[((algorithm,), arguments) for algorithm in ALGORITHMS for arguments in of_any_kind(algorithm)],
    *[
        (ALGORITHMS, dict(zip(SWITCHES, pair, strict=True)))
        for pair in zip(*map(kinds, SWITCHES.values()), strict=True)
    ],
    (ALGORITHMS, {"learning_rate": 0.0}),
    (ALGORITHMS, {"learning_rate": 0}),
    (ALGORITHMS, {"gamma": 1, "gae_lambda": True}),
    (ALGORITHMS, {"gamma": 0.0, "gae_lambda": np.array([0.5])}),
    (ALGORITHMS, {"seed": None, "stats_window_size": None}),
    (ALGORITHMS, {"stats_window_size": 0, "normalize_advantage": None}),
    *[(ALGORITHMS, {"use_sde": True, "sde_sample_freq": freq}) for freq in (0, -2, 4.0, np.float32(4.0), INF)],
    (ALGORITHMS, {"use_sde": None, "sde_sample_freq": None}),
    (NATURAL, {"cg_damping": 0.0, "cg_residual_tol": 0.0, "cg_max_steps": 1}),
    (NATURAL, {"n_critic_updates": 0}),
    (NATURAL, {"batch_size": 10_000}),
    (NATURAL, {"batch_size": 1}),
    (TRPO_ONLY, {"target_kl": 1, "radius_bounds": [1, 2]}),
    (MEASURING, {"rollback_z": None}),
    (MEASURING, {"rollback_z": 2, "radius_window": 1}),
    (PPO, {"normalize_advantage": False, "batch_size": 1, "n_steps": 8}),
    (PPO_ONLY, {"clip_range": 0, "clip_range_vf": None, "target_kl": None, "ent_coef": -0.01, "vf_coef": 0.0}),
    (PPO, {"max_grad_norm": INF}),
    (PENALTY_ONLY, {"kl_coef_factor": 1, "kl_tolerance": 1, "early_stop": None, "max_grad_norm": 0.0}),
    (PENALTY_ONLY, {"early_stop": INF, "clip_range_vf": INF, "ent_coef": -0.01, "vf_coef": 0.0}),
    (PPO_ONLY, {"max_grad_norm": 0.0, "target_kl": 0.0}),
    (PPO_ONLY, {"target_kl": INF, "clip_range_vf": INF}),
    (PPO_ONLY, {"clip_range": INF}),
]


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        pytest.param(algorithm, arguments, id=f"{algorithm.__name__}-{str(arguments)[:70]}")
        for index, (algorithms, arguments) in enumerate(ACCEPTED)
        for algorithm in (algorithms[index % len(algorithms)],)  # one after the other
    ],
)
def test_borderline_values_are_accepted(tmp_path: Path, algorithm: type[Any], arguments: dict[str, Any]) -> None:
    model = make_model(algorithm, **arguments)
    train(model, 1)
    assert all_finite(state_of(model.policy))
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=toy_vec_env(), device="cpu")
    assert_same(state_of(loaded.policy), state_of(model.policy))
    assert len(train(loaded, 1)) == 1


def test_checks_return_plain_python() -> None:
    """Of everything that stands for one number."""
    for value in (0.5, np.float32(0.5), np.array([0.5]), th.tensor(0.5), Fraction(1, 2), Decimal("0.5")):
        number = check_number("x", value)
        assert (number, type(number)) == (0.5, float)
        assert check_schedule("x", value, at_least=0.0) == 0.5
    for value in (2, np.uint8(2), np.array(2), th.tensor([2])):
        integer = check_integer("x", value, at_least=1, at_most=2)
        assert (integer, type(integer)) == (2, int)
    for value in (1, np.True_, 1.0, th.tensor(True)):
        assert check_bool("x", value) is True
    assert type(check_integer("x", True, at_least=0)) is int
    assert check_choice("x", np.str_("a"), ("a", "b")) == "a"
    assert check_schedule("x", math.sqrt) is math.sqrt


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_number("x", 1.0, above=0.0, below=1.0), "x must be > 0 and < 1, got 1.0"),
        (lambda: check_number("target_kl", -0.01, above=0.0), "target_kl must be > 0, got -0.01"),
        (lambda: check_number("x", INF, above=0.0), "x must be finite and > 0, got inf"),
        (lambda: check_number("x", -INF, at_least=0.0, infinite=True), "x must be >= 0, got -inf"),
        (lambda: check_number("x", 2**2000), "x must be a number, got"),
        (lambda: check_number("x", 1j, infinite=True), "x must be a number, got 1j"),
        (lambda: check_number("x", b"1"), "x must be a number, got b'1'"),
        (lambda: check_integer("x", 3, at_least=1, at_most=2), "x must be an integer >= 1 and <= 2, got 3"),
        (lambda: check_schedule("x", None, above=0.0), "x must be > 0, got None"),
        (lambda: check_choice("x", ["a"], ("a", "b")), "x must be one of 'a', 'b', got ['a']"),
        (lambda: check_bool("x", []), "x must be True or False, got []"),
    ],
)
def test_messages(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check()


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
    assert {0.75, 0.5, 0.25, 0.0} <= set(seen)
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


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("NoSuchPolicy", "NoSuchPolicy"),
        (DQNPolicy, "policy must be an ActorCriticPolicy.*DQNPolicy"),
        (RecurrentActorCriticPolicy, "policy must be an ActorCriticPolicy.*RecurrentActorCriticPolicy"),
        (MaskableActorCriticPolicy, "policy must be an ActorCriticPolicy.*MaskableActorCriticPolicy"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unsupported_policies(algorithm: type[Any], policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(algorithm, toy_vec_env(action_space=ACTION_SPACES["discrete"]), policy)


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO, PenaltyPPO])
def test_unsupported_distributions(algorithm: type[Any]) -> None:
    message = "action distribution must be one of .*, got MaskableCategoricalDistribution"
    with pytest.raises(ValueError, match=message):
        make_model(algorithm, toy_vec_env(action_space=ACTION_SPACES["discrete"]), PolicyOfAnotherDistribution)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_train_by_itself(algorithm: type[Any]) -> None:
    """The buffer asks for a whole rollout, as for stock."""
    model = make_model(algorithm)
    before = state_of(model.policy)
    with pytest.raises((AssertionError, AttributeError)):
        model.train()
    assert_same(state_of(model.policy), before)
