"""The same seed gives the same parameters, and ours with everything off gives stock's."""

from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, adaptive_ppo
from sb3_trustregion.adaptive_ppo import CG_DAMPING
from sb3_trustregion.core import surrogate
from tests.environments import ACTION_SPACES, OBSERVATION_SPACES, toy_vec_env
from tests.helpers import (
    ALGORITHMS,
    UPDATE,
    Update,
    Updates,
    actor_names,
    assert_same,
    differs,
    make_model,
    state_of,
    train,
)
from tests.networks import Dropout, LayeredExtractor

VARIANTS: list[dict[str, Any]] = [{}, {"use_sde": True, "sde_sample_freq": 4}]


def trained(algorithm: type[Any], seed: int, **kwargs: Any) -> dict[str, Any]:
    model = make_model(algorithm, seed=seed, **kwargs)
    train(model)
    return {"policy": state_of(model.policy), "optimizer": model.policy.optimizer.state_dict()}


@pytest.mark.parametrize("arguments", VARIANTS, ids=["plain", "gsde"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_decides(algorithm: type[Any], arguments: dict[str, Any]) -> None:
    one, again = trained(algorithm, 3, **arguments), trained(algorithm, 3, **arguments)
    assert_same(one, again)
    assert differs(one["policy"], trained(algorithm, 4, **arguments)["policy"])


@pytest.mark.parametrize("arguments", [{"sub_sampling_factor": 2}, {"rollback_z": 0.1}], ids=str)
def test_seed_decides_whatever_is_switched_on(arguments: dict[str, Any]) -> None:
    assert_same(trained(AdaptiveTRPO, 3, **arguments), trained(AdaptiveTRPO, 3, **arguments))


def test_set_random_seed_decides_too() -> None:
    models = [make_model(NPG, seed=None) for _ in range(2)]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    for model in models:
        model.set_random_seed(7)
        train(model)
    assert_same(state_of(models[0].policy), state_of(models[1].policy))


ENVIRONMENTS = {
    "box": {},
    "normalized": {},
    "discrete": {"action_space": ACTION_SPACES["discrete"]},
    "multi_binary": {"action_space": ACTION_SPACES["multi_binary"]},
    "dict": {"observation_space": OBSERVATION_SPACES["dict"]},
}


def environment(kind: str) -> VecEnv:
    env = toy_vec_env(**ENVIRONMENTS[kind])
    return VecNormalize(env) if kind == "normalized" else env


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [*((kind, "rollout") for kind in ENVIRONMENTS), ("normalized", "episodes"), ("normalized", "surrogate")],
)
def test_adaptive_ppo_with_a_fixed_radius_is_ppo(kind: str, estimator: str) -> None:
    """Measuring costs no random number and touches nothing."""
    policy = "MultiInputPolicy" if kind == "dict" else "MlpPolicy"
    switched_off = {"radius_rule": "fixed", "rollback_z": None, "improvement_estimator": estimator}
    ours = make_model(AdaptivePPO, environment(kind), policy, **switched_off)
    updates = train(ours, 4)
    stock = make_model(PPO, environment(kind), policy).learn(4 * UPDATE)

    assert_same(state_of(ours.policy), state_of(stock.policy))
    assert_same(ours.policy.optimizer.state_dict(), stock.policy.optimizer.state_dict())
    for key in ("train/loss", "train/clip_range", "train/approx_kl", "train/clip_fraction", "train/std"):
        assert updates[-1].logged.get(key) == stock.logger.name_to_value.get(key)


def test_adaptive_ppo_with_a_fixed_radius_is_ppo_where_it_measures_on_part_of_the_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surrogate, "LEAST_FISHER_STATES", 8)
    ours = make_model(AdaptivePPO, radius_rule="fixed", rollback_z=None).learn(3 * UPDATE)
    stock = make_model(PPO).learn(3 * UPDATE)
    assert_same(state_of(ours.policy), state_of(stock.policy))


def test_damping_of_adaptive_ppo_is_per_action_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    class Seen(surrogate.Surrogate):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append(self.fisher_product.damping)

    monkeypatch.setattr(adaptive_ppo, "Surrogate", Seen)
    train(make_model(AdaptivePPO, toy_vec_env(action_space=spaces.Box(-1.0, 1.0, (3,)))), 1)
    assert seen == [pytest.approx(3 * CG_DAMPING)]


@pytest.mark.parametrize("layer", [Dropout, nn.BatchNorm1d])
def test_adaptive_ppo_with_a_fixed_radius_is_ppo_in_training_mode_alone(layer: type[nn.Module]) -> None:
    """The model is asked in evaluation mode: no random number for dropout, no batch for the statistics."""
    policy_kwargs = {"features_extractor_class": LayeredExtractor, "features_extractor_kwargs": {"layer": layer}}
    ours = make_model(AdaptivePPO, radius_rule="fixed", rollback_z=None, policy_kwargs=policy_kwargs)
    updates = train(ours, 4)
    stock = make_model(PPO, policy_kwargs=policy_kwargs).learn(4 * UPDATE)
    assert_same(state_of(ours.policy), state_of(stock.policy))
    for update in updates:
        assert update.kl == pytest.approx(update.logged["train/kl_divergence"], rel=1e-2)


@pytest.mark.parametrize(
    "extra", [{"use_sde": True, "sde_sample_freq": 4}, {"target_kl": 1e-3}, {"clip_range_vf": 0.1}], ids=str
)
def test_adaptive_ppo_with_the_arguments_of_ppo_is_ppo(extra: dict[str, Any]) -> None:
    ours = make_model(AdaptivePPO, radius_rule="fixed", rollback_z=None, clip_range=lambda left: 0.1 * left, **extra)
    train(ours, 4)
    stock = make_model(PPO, clip_range=lambda left: 0.1 * left, **extra).learn(4 * UPDATE)
    assert_same(state_of(ours.policy), state_of(stock.policy))


def test_adaptive_ppo_adapts_by_default() -> None:
    """The comparisons above would not notice if the switches switched nothing."""
    ours, stock = make_model(AdaptivePPO), make_model(PPO)
    train(ours, 4)
    assert differs(state_of(ours.policy), state_of(stock.learn(4 * UPDATE).policy))


def first_update(algorithm: type[Any], space: spaces.Space[Any], **arguments: Any) -> Update:
    """Of a batch that is the same for all: nothing has drawn from the generators since the model was made."""
    batch: dict[str, Any] = {"n_steps": 256, "batch_size": 64, "n_critic_updates": 1, "cg_max_steps": 40}
    batch |= {"line_search_shrinking_factor": 0.98}  # one overshoots where the other does not, but by little
    updates = Updates()
    make_model(algorithm, toy_vec_env(action_space=space), **batch, **arguments).learn(512, callback=updates)
    return updates.made[0]


# Neither a loose solution nor a part of the states.
EXACT = {"cg_residual_tol": 0.0, "fisher_sub_sampling_factor": 1}


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(3)], ids=str)
@pytest.mark.parametrize("target_kl", [0.001, 0.01])
def test_adaptive_trpo_steps_where_trpo_steps(target_kl: float, space: spaces.Space[Any]) -> None:
    """Radius and damping are per action dimension, as sb3-contrib's: the same numbers, the same step."""
    policy_kwargs = {"net_arch": [8], "log_std_init": 0.0}
    mine = first_update(AdaptiveTRPO, space, target_kl=target_kl, cg_damping=0.02, policy_kwargs=policy_kwargs, **EXACT)
    theirs = first_update(TRPO, space, target_kl=target_kl, cg_damping=0.02)
    assert_same(mine.before, theirs.before)

    actor = actor_names(make_model(AdaptiveTRPO, toy_vec_env(action_space=space)))
    one, other = (th.cat([(u.after[name] - u.before[name]).flatten() for name in actor]) for u in (mine, theirs))
    assert float(th.nn.functional.cosine_similarity(one, other, dim=0)) > 0.999
    assert float(one.norm() / other.norm()) == pytest.approx(1.0, abs=0.05)
    assert 0.9 * target_kl < mine.kl <= target_kl * (1.0 + 1e-6)
