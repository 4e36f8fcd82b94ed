"""Search spaces: RL Zoo builds the model where an error ends the whole study."""

from typing import Any

import gymnasium as gym
import optuna
import pytest
from gymnasium import spaces
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


@pytest.mark.parametrize(("n_actions", "n_envs"), [(0, 1), (6, 3), (2, 8), (1, 5000)])
@pytest.mark.parametrize("algorithm", SAMPLERS)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:batch_size=")
def test_whatever_is_sampled_can_be_built(algorithm: str, n_actions: int, n_envs: int) -> None:
    study = make_study()
    env = make_env(n_actions, n_envs) if n_envs < 10 else None
    for _ in range(N_TRIALS):
        trial = study.ask()
        sampled = SAMPLERS[algorithm](trial, n_actions, n_envs, {})
        if env is None:
            assert sampled["n_steps"] == 8
            continue
        model = getattr(sb3_trustregion, ALGORITHMS[algorithm])("MlpPolicy", env, device="cpu", **sampled)
        assert 2**9 <= model.n_steps * n_envs <= 2**13
        assert model.batch_size <= model.n_steps * n_envs
        assert ("log_std_init" in trial.params) == (n_actions > 0)


@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_a_stored_trial_gives_back_what_was_sampled(algorithm: str) -> None:
    """As ``--trial-id`` does it."""
    trial = make_study().ask()
    sampled = SAMPLERS[algorithm](trial, 6, 2, {})
    assert CONVERTERS[algorithm](trial.params) == sampled


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_few_that_matter_are_searched(algorithm: str) -> None:
    trial = make_study().ask()
    SAMPLERS[algorithm](trial, 6, 1, {})
    own = getattr(sb3_trustregion, ALGORITHMS[algorithm]).search_space
    shared = {"one_minus_gamma", "one_minus_gae_lambda", "n_steps_pow", "critic", "log_std_init"}
    assert trial.distributions.keys() == shared | own.keys()
    assert own
    for name, (low, high) in own.items():
        distribution = trial.distributions[name]
        assert isinstance(distribution, optuna.distributions.FloatDistribution)
        assert (distribution.low, distribution.high, distribution.log) == (low, high, True)


@pytest.mark.parametrize(("algorithm", "start"), [("adaptive_trpo", "target_kl"), ("adaptive_ppo", "clip_range")])
def test_a_radius_that_is_tried_is_tried_for_the_whole_run(algorithm: str, start: str) -> None:
    sampled = SAMPLERS[algorithm](make_study().ask(), 6, 1, {})
    assert sampled["radius_prior"] == sampled[start]
