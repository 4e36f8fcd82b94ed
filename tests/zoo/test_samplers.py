"""Search spaces: RL Zoo builds the model where an error ends the whole study."""

from typing import Any

import gymnasium as gym
import optuna
import pytest
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import sb3_trustregion
from sb3_trustregion import ALGORITHMS
from sb3_trustregion.zoo.samplers import CONVERTERS, SAMPLERS

N_TRIALS = 30


class Idle(gym.Env[Any, Any]):
    """Spaces are all that a constructor looks at."""

    observation_space = spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, n_actions: int) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (n_actions,)) if n_actions else spaces.Discrete(2)


def make_env(n_actions: int, n_envs: int) -> VecEnv:
    return DummyVecEnv([lambda: Idle(n_actions) for _ in range(n_envs)])


def make_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(("n_actions", "n_envs"), [(0, 1), (6, 3)])
@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_whatever_is_sampled_can_be_built(algorithm: str, n_actions: int, n_envs: int) -> None:
    study, env = make_study(), make_env(n_actions, n_envs)
    for _ in range(N_TRIALS):
        sampled = SAMPLERS[algorithm](study.ask(), n_actions, n_envs, {})
        model = getattr(sb3_trustregion, ALGORITHMS[algorithm])("MlpPolicy", env, device="cpu", **sampled)
        assert model.batch_size <= model.n_steps * n_envs


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_a_stored_trial_gives_back_what_was_sampled(algorithm: str) -> None:
    """As ``--trial-id`` does it; only the batch size may be larger than the rollout there."""
    trial = make_study().ask()
    sampled = SAMPLERS[algorithm](trial, 6, 2, {})
    restored = CONVERTERS[algorithm](trial.params)
    assert {**restored, "batch_size": sampled["batch_size"]} == sampled
    getattr(sb3_trustregion, ALGORITHMS[algorithm])("MlpPolicy", make_env(6, 2), device="cpu", **restored)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_shared_parameters_have_the_ranges_of_the_stock_algorithm(algorithm: str) -> None:
    """Whatever the stock algorithm is searched over and ours takes; what ours does not take is not suggested."""
    ours, theirs = make_study().ask(), make_study().ask()
    SAMPLERS[algorithm](ours, 6, 1, {})
    HYPERPARAMS_SAMPLER["ppo" if algorithm.endswith("ppo") else "trpo"](theirs, 6, 1, {})
    left_out = {"npg": {"target_kl"}, "penalty_ppo": {"clip_range"}}.get(algorithm, set())
    assert {name: ours.distributions[name] for name in theirs.distributions.keys() - left_out} == {
        name: theirs.distributions[name] for name in theirs.distributions.keys() - left_out
    }
    own = getattr(getattr(sb3_trustregion, ALGORITHMS[algorithm]), "search_space", {})
    assert ours.distributions.keys() - theirs.distributions.keys() == own.keys()
    assert ours.user_attrs == theirs.user_attrs


@pytest.mark.parametrize(("algorithm", "start"), [("adaptive_trpo", "target_kl"), ("adaptive_ppo", "clip_range")])
def test_a_radius_that_is_tried_is_tried_for_the_whole_run(algorithm: str, start: str) -> None:
    sampled = SAMPLERS[algorithm](make_study().ask(), 6, 1, {})
    assert sampled["radius_prior"] == sampled[start]


def test_the_step_of_npg_is_searched() -> None:
    trial = make_study().ask()
    sampled = SAMPLERS["npg"](trial, 0, 1, {})
    distribution = trial.distributions["actor_step_size"]
    assert isinstance(distribution, optuna.distributions.FloatDistribution)
    assert (distribution.low, distribution.high, distribution.log) == (0.03, 3.0, True)
    assert sampled["actor_step_size"] == trial.params["actor_step_size"]
    assert "target_kl" not in sampled
