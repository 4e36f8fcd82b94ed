"""The arguments are those of the algorithms that ours replace, and each is documented."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

import sb3_trustregion
from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.common.on_policy import LOG_STD_INIT
from tests.environments import ToyEnv
from tests.helpers import ALGORITHMS

KL_AND_LINE_SEARCH = {"target_kl", "line_search_shrinking_factor", "line_search_max_iter"}
RADIUS = ["radius_rule", "radius_prior", "radius_window", "radius_bounds", "rollback_z", "improvement_estimator"]
RADIUS += ["judge_class", "judge_kwargs"]
NATURAL = ["cg_residual_tol", "fisher_sub_sampling_factor"]


def names(algorithm: type[Any], kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD) -> list[str]:
    return [name for name, parameter in inspect.signature(algorithm).parameters.items() if parameter.kind is kind]


@pytest.mark.parametrize(
    ("ours", "stock", "without", "new"),
    [
        (AdaptiveTRPO, TRPO, set(), [*NATURAL, *RADIUS]),
        (AdaptivePPO, PPO, set(), RADIUS),
        (PenaltyPPO, PPO, {"clip_range"}, ["kl_coef", "kl_tolerance", "kl_coef_factor", "early_stop"]),
        (NPG, TRPO, KL_AND_LINE_SEARCH, ["actor_step_size", *NATURAL]),
    ],
)
def test_one_word_replaces_the_algorithm(ours: type[Any], stock: type[Any], without: set[str], new: list[str]) -> None:
    """The same names in the same order, so that positions work too; new ones by name alone."""
    assert names(ours) == [name for name in names(stock) if name not in without]
    assert names(ours, inspect.Parameter.KEYWORD_ONLY) == new


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_argument_that_stock_lacks_is_documented(algorithm: type[Any]) -> None:
    documented = re.findall(r"^\s*:param (\w+):", inspect.getdoc(algorithm) or "", flags=re.MULTILINE)
    assert set(documented) <= set(inspect.signature(algorithm).parameters)
    assert set(names(algorithm, inspect.Parameter.KEYWORD_ONLY)) <= set(documented)
    assert len(documented) == len(set(documented))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_defaults(algorithm: type[Any]) -> None:
    """As a stranger would: a policy, a task, nothing else."""
    model = algorithm("MlpPolicy", ToyEnv())
    assert model.n_steps == 2048
    assert model.get_env().num_envs == 1
    by_id = algorithm("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32).learn(128)
    assert by_id.num_timesteps == 128


class Quiet(ActorCriticPolicy):
    """Has an initial log σ of its own."""

    def __init__(self, *args: Any, log_std_init: float = -2.0, **kwargs: Any) -> None:
        super().__init__(*args, log_std_init=log_std_init, **kwargs)


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
@pytest.mark.parametrize(
    ("policy", "kwargs", "log_std"),
    [
        ("MlpPolicy", {}, LOG_STD_INIT),
        ("MlpPolicy", {"policy_kwargs": {"net_arch": [8]}}, LOG_STD_INIT),
        ("MlpPolicy", {"policy_kwargs": {"log_std_init": 0.0}}, 0.0),
        ("MlpPolicy", {"policy_kwargs": {"log_std_init": -1.0}}, -1.0),
        ("MlpPolicy", {"use_sde": True}, 0.0),
        (Quiet, {}, -2.0),
    ],
)
def test_a_gaussian_policy_starts_less_noisy(
    algorithm: type[Any], policy: Any, kwargs: dict[str, Any], log_std: float, tmp_path: Path
) -> None:
    """Unless the user says otherwise; what is saved is what it has learned since."""
    model = algorithm(policy, ToyEnv(), n_steps=64, batch_size=64, **kwargs)
    assert model.policy.log_std.unique().tolist() == model.policy.log_std.new_tensor([log_std]).tolist()
    with th.no_grad():
        model.policy.log_std.zero_()
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", **{name: kwargs[name] for name in kwargs if name == "policy_kwargs"})
    assert not loaded.policy.log_std.any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_noise_goes_by_the_bounds_of_the_actions(algorithm: type[Any], tmp_path: Path) -> None:
    """σ over half of a range is the same for all; what bounds nothing, or leaves nothing to choose, counts as ±1."""
    largest = np.finfo(np.float32).max
    low = np.array([[-2.0, 0.0, -largest, -100.0], [3.0, 0.0, -0.25, -99.0]], np.float32)
    high = np.array([[2.0, 0.5, largest, 100.0], [3.0, 2.0, 0.25, 99.0]], np.float32)
    env = ToyEnv(action_space=spaces.Box(low, high))
    chosen = {} if algorithm in (NPG, AdaptiveTRPO) else {"policy_kwargs": {"log_std_init": None}}
    model = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, **chosen)
    half = th.tensor([2.0, 0.25, 1.0, 1.0, 1.0, 1.0, 0.25, 99.0])
    th.testing.assert_close(model.policy.log_std.detach(), LOG_STD_INIT + half.log())
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env, **chosen)
    assert loaded.policy.log_std.equal(model.policy.log_std)
    model = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, policy_kwargs={"log_std_init": 0.0})
    assert not model.policy.log_std.any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_model_can_be_set_up_later(algorithm: type[Any]) -> None:
    model = algorithm("MlpPolicy", ToyEnv(), n_steps=32, batch_size=32, _init_setup_model=False)
    assert not hasattr(model, "policy")
    model._setup_model()
    assert model.learn(64).num_timesteps == 64


def test_public_names() -> None:
    assert set(sb3_trustregion.__all__) == {"NPG", "AdaptivePPO", "AdaptiveTRPO", "PenaltyPPO", "__version__"}
    assert set(sb3_trustregion.__all__) <= set(dir(sb3_trustregion))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", sb3_trustregion.__version__)
    with pytest.raises(AttributeError, match="has no attribute 'TRPO'"):
        sb3_trustregion.TRPO  # noqa: B018
