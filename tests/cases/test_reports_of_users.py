"""What users of SB3 report of their programs, and stock takes."""

import inspect
import textwrap
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common import on_policy_algorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.functional import ActionHead
from tests.cases.tasks import UPDATE, Bandit, bandit_model, probability
from tests.helpers import ALGORITHMS, MEASURING, assert_same, make_model, state_of, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_judging = pytest.mark.parametrize("algorithm", MEASURING)


# Parameters


@each_algorithm
@pytest.mark.parametrize("stock", [PPO, TRPO])
def test_parameters_of_stock_are_taken(algorithm: type[Any], stock: type[Any]) -> None:
    given = bandit_model(stock, Bandit(), seed=1, batch_size=20).get_parameters()
    model = bandit_model(algorithm, Bandit(), batch_size=20)
    model.set_parameters(given)
    assert_same(state_of(model.policy), given["policy"])


@each_algorithm
def test_parameters_without_a_part_are_refused(algorithm: type[Any]) -> None:
    """Whichever is the last one, as SB3's own tests have it."""
    model = bandit_model(algorithm, Bandit(), batch_size=20)
    *parts, _ = model.get_parameters().items()
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters(dict(parts))


# Observations


class Lidar(Bandit):
    """A ray that meets nothing is as long as can be."""

    def __init__(self, nothing: float) -> None:
        super().__init__(0.0, 1.0)
        self.nothing = np.array([nothing, 0.0], dtype=np.float32)

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return self.nothing, *rest


class Clamping(FlattenExtractor):
    """Knows how far there is anything to be met."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations.clamp(-10.0, 10.0))


@each_algorithm
@pytest.mark.parametrize("nothing", [float(np.finfo(np.float32).max), 1e20])
def test_a_huge_number_may_stand_for_nothing(algorithm: type[Any], nothing: float) -> None:
    env = make_vec_env(lambda: Lidar(nothing), n_envs=10, seed=0)
    policy_kwargs = {"net_arch": [8], "features_extractor_class": Clamping}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bandit_model(algorithm, env, policy_kwargs=policy_kwargs).learn(10 * UPDATE)
    assert model.n_faulty_steps == 0
    assert probability(model, 1) > 0.7


# Rewards


class Shaped(VecEnvWrapper):
    """Rewards of one environment in a shape of their own."""

    shape: tuple[int, ...] = ()

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards.reshape(self.shape), dones, infos


class Column(Shaped):
    """One row, one column."""

    shape = (1, 1)


@each_algorithm
@pytest.mark.parametrize("wrapper", [Shaped, lambda env: VecNormalize(Column(env))])
def test_rewards_of_one_environment_in_any_shape(algorithm: type[Any], wrapper: Any) -> None:
    env = make_vec_env(lambda: Bandit(0.0, 1.0))
    model = bandit_model(algorithm, wrapper(env), n_steps=UPDATE).learn(10 * UPDATE)
    assert model.n_faulty_steps == 0
    assert probability(model, 1) > 0.8


# Judging


def with_loop_of_its_own(algorithm: type[Any]) -> type[Any]:
    """A subclass whose ``collect_rollouts`` is SB3's, written out."""
    names = dict(vars(on_policy_algorithm))
    exec(textwrap.dedent(inspect.getsource(on_policy_algorithm.OnPolicyAlgorithm.collect_rollouts)), names)
    return type("Own", (algorithm,), {"collect_rollouts": names["collect_rollouts"]})


@each_judging
def test_who_is_never_judged_is_told(algorithm: type[Any]) -> None:
    model = make_model(with_loop_of_its_own(algorithm))
    with pytest.warns(UserWarning, match="10 steps in a row were judged by nobody.*collect_rollouts"):
        train(model, n_updates=12)


# Threads


def test_who_predicts_meanwhile_does_no_harm() -> None:
    """Both fill the policy's one object for distributions."""
    model = make_model(AdaptiveTRPO)
    observations = th.zeros(3, *model.observation_space.shape)
    head = ActionHead(model.policy)
    _, parameters = head.at({}, observations, th.zeros(3, *model.action_space.shape))
    held = head.kind.distribution
    model.policy.get_distribution(observations[:1] + 1.0)
    assert head.kind.distribution is held
    assert len(next(iter(parameters))) == 3
