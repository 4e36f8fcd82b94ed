"""What few policies, optimisers, buffers and environments do, and stock takes: rare heads, hooks, own counters."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from tests.helpers import ALGORITHMS, all_finite, make_model, state_of

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


class RarePhase(gym.Env[npt.NDArray[np.float32], np.int64]):
    """64 steps; one of them looks different."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)
    info: dict[str, Any]

    def __init__(self) -> None:
        self.time, self.info = 0, {}

    def _seen(self) -> npt.NDArray[np.float32]:
        return np.array([self.time == 2, 1.0], dtype=np.float32)

    def reset(self, **kwargs: Any) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(**kwargs)
        self.time = 0
        return self._seen(), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = float(action == 1) * (10.0 if self.time == 2 else 0.1)
        self.time += 1
        return self._seen(), reward, self.time == 64, False, dict(self.info)


class HeadForThePhase(ActorCriticPolicy):
    """Its second head is not in the graph unless a batch has seen the phase."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.other = th.nn.Linear(2, 2)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        mask = latent_pi[:, 0] > 0.5
        logits = self.action_net(latent_pi)
        if mask.any():
            logits = logits.index_put((mask,), self.other(latent_pi[mask]))
        return self.action_dist.proba_distribution(logits)


class ByValue(ActorCriticPolicy):
    """Its logits use what the value head says."""

    def get_distribution(self, obs: Any) -> Distribution:
        distribution = super().get_distribution(obs)
        logits = distribution.distribution.logits + 0.0 * self.predict_values(obs)
        return self.action_dist.proba_distribution(logits)


class FixedDeviation(ActorCriticPolicy):
    """σ stays at 1."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.log_std.requires_grad = False


class FullCovariance(DiagGaussianDistribution):
    """Another distribution by the name of a known one."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "FullCovariance":
        covariance = th.diag_embed(th.ones_like(mean_actions) * log_std.exp() ** 2)
        self.distribution: Any = th.distributions.MultivariateNormal(mean_actions, covariance)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        result: th.Tensor = self.distribution.log_prob(actions)
        return result

    def entropy(self) -> th.Tensor:
        result: th.Tensor = self.distribution.entropy()
        return result


class Wrapped:
    """As little of an optimiser as SB3 needs."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self._adam = th.optim.Adam(parameters, lr=lr)
        self.param_groups = self._adam.param_groups

    def zero_grad(self) -> None:
        self._adam.zero_grad()

    def step(self) -> None:
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])


class Counting(RolloutBuffer):
    """Counts how often it was asked."""

    n_calls = 0

    def get(self, batch_size: int | None = None) -> Any:
        self.n_calls += 1
        yield from super().get(batch_size)


class TwoRewards(RolloutBuffer):
    """Keeps two rewards a step."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: npt.NDArray[Any]) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.rewards = np.stack([self.rewards, self.rewards], axis=-1)


class ShortInfos(DummyVecEnv):
    """Tells nothing where nothing ended."""

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = super().step_wait()
        return observations, rewards, dones, infos if dones.any() else []


@each_algorithm
def test_a_head_that_acts_in_few_states_learns(algorithm: type[Any]) -> None:
    model = make_model(algorithm, RarePhase(), HeadForThePhase, n_steps=256, policy_kwargs={"net_arch": []})
    before = model.policy.other.weight.detach().clone()
    model.learn(2 * 256)
    assert not th.equal(model.policy.other.weight, before)


@each_algorithm
def test_a_hook_that_holds_rows_holds_them(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1")
    weight = model.policy.mlp_extractor.policy_net[0].weight
    mask = th.ones_like(weight)
    mask[: len(mask) // 2] = 0.0
    weight.register_hook(lambda gradient: gradient * mask)
    before = weight.detach().clone()
    model.learn(3 * model.n_steps * model.n_envs)
    moved = (weight.detach() - before).abs()
    assert not moved[: len(mask) // 2].any()
    assert moved[len(mask) // 2 :].max() > 1e-4


@each_algorithm
def test_the_value_head_is_the_critics(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1", ByValue)
    before = model.policy.value_net.weight.detach().clone()
    model.learn(2 * model.n_steps * model.n_envs)
    assert not th.equal(model.policy.value_net.weight, before)


class Attention(BaseFeaturesExtractor):
    """Calls what it attends to values, as is usual; actor and critic share it."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        super().__init__(observation_space, 8)
        self.key_net, self.value_net = th.nn.Linear(1, 8), th.nn.Linear(1, 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        each = observations.unsqueeze(-1)
        return th.tanh((th.softmax(self.key_net(each), dim=1) * self.value_net(each)).sum(dim=1))


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_what_acts_is_the_actors_by_any_name(algorithm: type[Any]) -> None:
    policy_kwargs = {"features_extractor_class": Attention, "net_arch": []}
    model = make_model(algorithm, "CartPole-v1", policy_kwargs=policy_kwargs)
    before = copy.deepcopy(model.policy)
    model.learn(model.n_steps * model.n_envs)
    seen = th.as_tensor(model.rollout_buffer.observations)
    old, new = (policy.get_distribution(seen).distribution for policy in (before, model.policy))
    kl = th.distributions.kl_divergence(old, new).mean().item()
    # The critic's fit has moved nothing that acts.
    assert kl == pytest.approx(model.logger.name_to_value["train/kl_divergence"], rel=1e-3)
    assert not th.equal(before.features_extractor.value_net.weight, model.policy.features_extractor.value_net.weight)


@each_algorithm
def test_a_deviation_that_is_frozen_stays(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "Pendulum-v1", FixedDeviation)
    assert not model.policy.log_std.any()
    model.learn(2 * model.n_steps * model.n_envs)
    assert not model.policy.log_std.any()


@each_algorithm
def test_an_unknown_distribution_by_a_known_name_is_named(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "Pendulum-v1")
    model.policy.action_dist = FullCovariance(1)
    told = pytest.warns(UserWarning, match="got MultivariateNormal. ε stays")
    if algorithm is not AdaptivePPO:  # which needs none for stock's update
        told = pytest.raises(ValueError, match="independent Gaussians, got MultivariateNormal")
    with told:
        model.learn(2 * model.n_steps * model.n_envs)


@each_algorithm
def test_an_embedding_of_bounded_norm_is_trained(algorithm: type[Any]) -> None:
    class Embedded(BaseFeaturesExtractor):
        def __init__(self, observation_space: Any) -> None:
            super().__init__(observation_space, 2)
            self.embedding = th.nn.Embedding(2, 2, max_norm=0.5)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return observations * self.embedding((observations[:, 0] > 0).long())

    policy_kwargs = {"net_arch": [], "features_extractor_class": Embedded}
    model = make_model(algorithm, RarePhase(), policy_kwargs=policy_kwargs)
    model.learn(2 * model.n_steps)
    assert all_finite(state_of(model.policy))


@each_algorithm
def test_a_wrapped_optimiser_is_used(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1", policy_kwargs={"optimizer_class": Wrapped, "optimizer_kwargs": {}})
    before = model.policy.value_net.weight.detach().clone()
    model.learn(3 * model.n_steps * model.n_envs)
    assert not th.equal(model.policy.value_net.weight, before)


@each_algorithm
def test_a_buffer_may_count(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1", rollout_buffer_class=Counting)
    model.learn(3 * model.n_steps * model.n_envs)
    assert model.rollout_buffer.n_calls >= 3


@each_algorithm
def test_two_rewards_a_step_are_learned_from_and_judged_by_nobody(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1", rollout_buffer_class=TwoRewards)
    before = model.policy.action_net.weight.detach().clone()
    model.learn(3 * model.n_steps * model.n_envs)
    assert not th.equal(model.policy.action_net.weight, before)
    assert not hasattr(model, "judge") or model.judge.state.n_judged == 0


@each_algorithm
@pytest.mark.parametrize("episode", [{}, 3, {"r": 1.0}], ids=str)
def test_what_an_environment_calls_episode_is_its_own(algorithm: type[Any], episode: Any) -> None:
    env = RarePhase()
    env.info = {"episode": episode}
    model = make_model(algorithm, DummyVecEnv([lambda: env]))
    model.learn(2 * model.n_steps, log_interval=None)  # type: ignore[arg-type]
    assert all_finite(state_of(model.policy))


@each_algorithm
def test_infos_may_be_left_out(algorithm: type[Any]) -> None:
    model = make_model(algorithm, VecNormalize(ShortInfos([RarePhase])))
    # SB3 itself reads infos by environment, but with a buffer of episodes only.
    model._update_info_buffer = lambda *_: None
    model.learn(2 * model.n_steps)
    assert all_finite(state_of(model.policy))


@each_algorithm
def test_names_of_logged_values_stay_apart_in_narrow_tables(algorithm: type[Any], tmp_path: Any) -> None:
    model = make_model(algorithm, "CartPole-v1")
    with (tmp_path / "log.txt").open("w") as file:
        model.set_logger(Logger(folder=None, output_formats=[HumanOutputFormat(file, max_length=24)]))
        model.learn(4 * model.n_steps * model.n_envs)


@each_algorithm
def test_callbacks_find_their_own_among_the_local_variables(algorithm: type[Any]) -> None:
    class Named(BaseCallback):
        nickname, found = "mine", ""

        def _on_step(self) -> bool:
            self.found = self.locals["callback"].nickname
            return True

    callback = Named()
    model = make_model(algorithm, "CartPole-v1")
    model.learn(model.n_steps * model.n_envs, callback=callback)
    assert callback.found == "mine"
