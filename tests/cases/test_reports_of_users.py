"""What users of SB3 report of their programs, and stock takes."""

import inspect
import textwrap
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common import on_policy_algorithm
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.core.functional import ActionHead, unfold
from tests.cases.tasks import N_ENVS, UPDATE, Bandit, bandit_model, probability
from tests.helpers import ALGORITHMS, MEASURING, assert_same, make_model, shared, state_of, train
from tests.networks import Reading

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


@pytest.mark.parametrize(("algorithm", "nothing"), shared([float(np.finfo(np.float32).max), 1e20]))
def test_a_huge_number_may_stand_for_nothing(algorithm: type[Any], nothing: float) -> None:
    env = make_vec_env(lambda: Lidar(nothing), n_envs=10, seed=0)
    policy_kwargs = {"net_arch": [8], "features_extractor_class": Clamping}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bandit_model(algorithm, env, policy_kwargs=policy_kwargs).learn(10 * UPDATE)
    assert model.n_faulty_steps == 0
    assert probability(model, 1) > 0.7


class HalfBlind(Bandit):
    """
    A sensor that is dead, beside one that is not.

    :param share: of the steps that it is dead in
    """

    def __init__(self, share: float = 1.0, phase: int = 0) -> None:
        super().__init__(0.0, 1.0)
        self.every, self.n_seen = round(1.0 / share), phase

    def _observed(self) -> Any:
        self.n_seen += 1
        dead = self.n_seen % self.every == 0
        return np.array([np.nan if dead else 1.0, 5.0 + self.n_steps], dtype=np.float32)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._observed(), {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return self._observed(), *rest


@pytest.mark.parametrize(("algorithm", "share"), shared([1.0, 1.0 / 7.0]))
def test_a_dead_sensor_beneath_normalisation(algorithm: type[Any], share: float) -> None:
    phases = iter(range(10))
    env = VecNormalize(make_vec_env(lambda: HalfBlind(share, next(phases)), n_envs=10, seed=0), norm_reward=False)
    policy_kwargs = {"net_arch": [8], "features_extractor_class": Reading}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bandit_model(algorithm, env, policy_kwargs=policy_kwargs).learn(10 * UPDATE)
    assert model.n_faulty_steps == 0
    # What is not known stays as it is, what is known of it or of the other goes on.
    own, other = (0.0, 1.0) if share == 1.0 else (1.0, 0.0)
    assert env.obs_rms.mean == pytest.approx([own, 9.5], abs=0.1)
    assert env.obs_rms.var[0] == pytest.approx(other, abs=0.1)
    assert not {"update", "update_from_moments"} & vars(env.obs_rms).keys()
    assert probability(model, 1) > 0.7


# Layers


class KeepsItsBackbone(FlattenExtractor):
    """Overrides ``train`` for a part of it, and looks at its own flag for another."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space)
        self.backbone = th.nn.Sequential(
            th.nn.Linear(self.features_dim, self.features_dim), th.nn.BatchNorm1d(self.features_dim)
        )

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = self.backbone(super().forward(observations))
        return th.nn.functional.dropout(features, 0.5, self.training)


@each_algorithm
def test_a_layer_that_looks_at_its_own_flag_is_as_it_acts(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy_kwargs={"net_arch": [8], "features_extractor_class": KeepsItsBackbone})
    updates = train(model, n_updates=6)
    assert all(update.logged["train/step_status"] == 1 for update in updates)
    if hasattr(model, "judge"):
        assert model.judge.state.n_judged == 5
    model.policy.set_training_mode(False)
    unfold(model.policy)
    assert not model.policy.features_extractor.training


class Sampling(FlattenExtractor):
    """Draws its features, in evaluation too."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = super().forward(observations)
        return features + 10.0 * th.randn_like(features)


@pytest.mark.filterwarnings("ignore:.*updates without a policy step")
def test_a_policy_that_is_always_random_keeps_its_radius() -> None:
    """No radius makes its KL to itself zero."""
    model = make_model(AdaptiveTRPO, policy_kwargs={"net_arch": [8], "features_extractor_class": Sampling})
    updates = train(model, n_updates=8)
    radii = [update.logged["train/radius"] for update in updates]
    refused = [update.logged["train/step_status"] == -1 for update in updates[:-1]]
    assert any(refused)
    assert all(after >= before for after, before, no in zip(radii[1:], radii, refused, strict=False) if no)


@pytest.mark.parametrize("arguments", [{"line_search_max_iter": 1}, {"line_search_shrinking_factor": 0.99}])
def test_few_trial_points_reach_into_the_radius(arguments: dict[str, Any]) -> None:
    model = make_model(AdaptiveTRPO, **{"line_search_max_iter": 2, **arguments})
    updates = train(model, n_updates=8)
    assert sum(update.logged["train/step_status"] == 1 for update in updates) >= 7


class Bounded(ActorCriticPolicy):
    """Keeps log σ within bounds."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        log_std = -2.0 + 2.0 * th.tanh(self.log_std)
        return self.action_dist.proba_distribution(self.action_net(latent_pi), log_std)


def test_who_makes_sigma_of_log_std_otherwise_starts_as_with_stock() -> None:
    assert not make_model(AdaptiveTRPO, policy=Bounded).policy.log_std.any()
    assert make_model(AdaptiveTRPO).policy.log_std.any()


# Actions


class OfBytes(HalfBlind):
    """Actions are bytes: below zero they are stored as others."""

    def __init__(self) -> None:
        super().__init__(1e-6)
        self.action_space = spaces.Box(0, 255, (2,), np.uint8)

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(0)
        return observation, -float(np.abs(np.asarray(action, dtype=float) - 1.0).sum()), *rest


@each_algorithm
def test_actions_of_bytes(algorithm: type[Any]) -> None:
    """What nobody would have taken counts for nothing, and spoils nothing."""
    model = bandit_model(algorithm, make_vec_env(OfBytes, n_envs=10, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        model.learn(5 * UPDATE)
    assert model.n_invalid == 0


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


@pytest.mark.parametrize(
    ("algorithm", "wrapper"),
    shared(
        [lambda env: VecNormalize(Column(env)), Shaped, lambda env: VecNormalize(Shaped(env))], others=(AdaptivePPO,)
    ),
)
def test_rewards_of_one_environment_in_any_shape(algorithm: type[Any], wrapper: Any) -> None:
    env = make_vec_env(lambda: Bandit(0.0, 1.0))
    model = bandit_model(algorithm, wrapper(env), n_steps=UPDATE // 2).learn(5 * UPDATE)
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


class Curious(BaseCallback):
    """Adds a bonus for action 1 to advantages and returns, and leaves the rewards alone, as some libraries do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        bonus = 0.6 * buffer.actions[..., 0]
        buffer.advantages += bonus
        buffer.returns += bonus


@each_judging
def test_a_bonus_that_rewards_do_not_show(algorithm: type[Any]) -> None:
    """By the rewards alone what is learned makes it worse; the advantages are what steps are judged by."""
    model = bandit_model(algorithm, make_vec_env(lambda: Bandit(0.0, -0.3), N_ENVS))
    model.learn(20 * UPDATE, callback=Curious())
    assert model.region.pooled_ratio > 0.5
    assert (model.region.n_judged > 10, model.region.n_rollbacks) == (True, 0)
    assert probability(model, 1) > 0.9


class MonteCarloBuffer(RolloutBuffer):
    """Advantages by the returns of whole episodes."""

    def __init__(self, *args: Any, gae_lambda: float = 1.0, gamma: float = 0.99, **kwargs: Any) -> None:
        BaseBuffer.__init__(self, *args, **kwargs)
        self.discount = gamma
        self.reset()

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        last = last_values.cpu().numpy().flatten()
        ends = np.concatenate([self.episode_starts[1:], dones[None]])
        for step in reversed(range(self.buffer_size)):
            last = self.rewards[step] + self.discount * (1.0 - ends[step]) * last
            self.returns[step] = last
        self.advantages = self.returns - self.values


class Columns(RolloutBuffer):
    """A column each of advantages and of returns; ``get`` flattens either."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages, self.returns = self.advantages[..., None], self.returns[..., None]


@pytest.mark.parametrize(("algorithm", "buffer"), shared([MonteCarloBuffer, Columns], *MEASURING))
def test_a_buffer_of_ones_own_make(algorithm: type[Any], buffer: type[RolloutBuffer]) -> None:
    """Its own idea of advantages needs no λ."""
    kwargs = {"n_steps": 20, "rollout_buffer_class": buffer}
    model = bandit_model(algorithm, make_vec_env(lambda: Bandit(0.0, 1.0), N_ENVS), **kwargs).learn(10 * UPDATE)
    assert probability(model, 1) > 0.8
    assert algorithm not in MEASURING or model.region.n_judged > 5


class OfInference(ActorCriticPolicy):
    """Its distribution is to act by, without gradients; what is trained is what ``evaluate_actions`` gives."""

    @th.no_grad()
    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(obs)


def test_a_distribution_without_gradients() -> None:
    with pytest.warns(UserWarning, match="policy cannot be judged"):
        train(make_model(AdaptivePPO, policy=OfInference), n_updates=1)
    with pytest.raises(ValueError, match="policy must tell by get_distribution"):
        train(make_model(PenaltyPPO, policy=OfInference), n_updates=1)


@each_judging
def test_noise_that_is_held_for_a_rollout_decides_nothing(algorithm: type[Any]) -> None:
    """One draw of gSDE's: whether it was lucky is all that a single environment tells."""
    model = make_model(algorithm, make_vec_env("Pendulum-v1"), use_sde=True, n_steps=64)
    with pytest.warns(UserWarning, match="judged by nobody.*parts that are independent"):
        train(model, n_updates=12)
    assert (model.region.n_judged, model.region.n_rollbacks) == (0, 0)


@each_judging
def test_episodes_without_a_monitor_are_told(algorithm: type[Any]) -> None:
    env = DummyVecEnv([lambda: Bandit(0.0, 1.0)] * N_ENVS)
    with pytest.warns(UserWarning, match=r"judged by nobody.*episodes \(by Monitor\)"):
        bandit_model(algorithm, env, improvement_estimator="episodes").learn(12 * UPDATE)


# Arguments


@each_algorithm
def test_a_function_that_makes_the_policy(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy=lambda *args, **kwargs: ActorCriticPolicy(*args, **kwargs))
    train(model, n_updates=2)
    assert isinstance(model.policy, ActorCriticPolicy)


@each_algorithm
@pytest.mark.parametrize("policy", [3, None, int])
def test_what_makes_no_policy_is_refused(algorithm: type[Any], policy: Any) -> None:
    with pytest.raises(ValueError, match="policy must be an ActorCriticPolicy without memory, got"):
        make_model(algorithm, policy=policy)


@each_judging
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rollback_z", True), ("radius_window", True), ("radius_prior", True)),
        *(("judge_class", dict), ("judge_class", 3), ("judge_kwargs", {"no": 1}), ("judge_kwargs", 3)),
    ],
)
def test_arguments_of_the_judge_are_named(algorithm: type[Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        make_model(algorithm, **{name: value})


# Threads


def test_who_predicts_meanwhile_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fill the policy's one object for distributions."""
    model = make_model(AdaptiveTRPO)
    observations = th.zeros(3, *model.observation_space.shape)
    actions, kind = th.zeros(3, *model.action_space.shape), type(model.policy.action_dist)
    log_prob = kind.log_prob

    def meanwhile(distribution: Any, actions: th.Tensor) -> th.Tensor:
        model.policy.get_distribution(observations[:1] + 1.0)
        return log_prob(distribution, actions)

    monkeypatch.setattr(kind, "log_prob", meanwhile)
    log_probs, _ = ActionHead(model.policy).at({}, observations, actions)
    assert len(log_probs) == 3
    th.testing.assert_close(log_probs, log_prob(model.policy.get_distribution(observations), actions))
