"""Buffers, optimisers, layouts and devices of the user's own making, which stock takes as they are."""

import io
import warnings
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecNormalize
from torch.utils.checkpoint import checkpoint

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.common.judge import Judge
from sb3_trustregion.core import batch
from sb3_trustregion.core.improvement import Improvement
from tests.cases.tasks import UPDATE, Bandit, bandit_model, probability
from tests.helpers import ALGORITHMS, MEASURING, PlainBuffer, assert_same, make_model, shared, state_of, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_judging = pytest.mark.parametrize("algorithm", MEASURING)


class Good(Bandit):
    """The second action is worth one."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


class Seen(Good):
    """What is observed differs from step to step, and says nothing."""

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return np.array([np.sin(3.0 * self.n_steps), np.cos(5.0 * self.n_steps)], dtype=np.float32), *rest


def good_model(algorithm: type[Any], env: type[gym.Env[Any, Any]] = Good, **kwargs: Any) -> Any:
    return bandit_model(algorithm, make_vec_env(env, n_envs=10, seed=0), **kwargs)


def learns(model: Any) -> bool:
    return probability(model.learn(10 * UPDATE), 1) > 0.8


# Buffers


class Encoded(RolloutBuffer):
    """Stores observations as whole numbers, in an array of the same kind."""

    def add(self, obs: Any, *rest: Any) -> None:
        super().add(np.round(obs * 1e6), *rest)

    def _get_samples(self, batch_inds: Any, env: Any = None) -> RolloutBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(observations=samples.observations / 1e6)


class OfBytes(RolloutBuffer):
    """... or as objects."""

    def reset(self) -> None:
        super().reset()
        self.observations = np.empty((self.buffer_size, self.n_envs, 1), dtype=object)

    def add(self, obs: Any, *rest: Any) -> None:
        encoded = np.array([[row.tobytes()] for row in obs], dtype=object)
        position = self.pos
        plain, self.observations = self.observations, np.zeros((self.buffer_size, self.n_envs, *self.obs_shape))
        super().add(obs, *rest)
        self.observations = plain
        self.observations[position] = encoded

    def _get_samples(self, batch_inds: Any, env: Any = None) -> RolloutBufferSamples:
        encoded = self.observations
        self.observations = np.stack([np.frombuffer(row[0], np.float32) for row in encoded.reshape(-1, 1)])
        samples = super()._get_samples(batch_inds, env)
        self.observations = encoded
        return samples


class ByIndices(OfBytes):
    """... with a ``get`` that asks for samples by their indices, as libraries for compressed observations have."""

    def get(self, batch_size: int | None = None) -> Any:
        yield from super().get(batch_size)


@each_judging
@pytest.mark.parametrize("buffer", [Encoded, OfBytes, ByIndices])
def test_steps_are_judged_by_what_the_policy_saw(algorithm: type[Any], buffer: type[RolloutBuffer]) -> None:
    # One after the other: each seeds the random numbers that it draws, both in the same way.
    plain, encoded = (
        good_model(algorithm, Seen, rollout_buffer_class=which).learn(4 * UPDATE) for which in (PlainBuffer, buffer)
    )
    assert encoded.region.n_judged == plain.region.n_judged == 3
    assert encoded.region.actual == pytest.approx(plain.region.actual, rel=1e-2)
    assert encoded.region.radius == pytest.approx(plain.region.radius, rel=1e-2)


class Unordered(OfBytes):
    """... of which nobody but itself knows the order."""

    rng = th.Generator()

    def get(self, batch_size: int | None = None) -> Any:
        for samples in super().get():
            n = len(samples.advantages)
            for part in th.randperm(n, generator=self.rng).split(batch_size or n):
                yield RolloutBufferSamples(*(tensor[part] for tensor in samples))


@each_judging
def test_what_only_the_buffer_can_read_is_learned_from_and_not_judged(algorithm: type[Any]) -> None:
    model = good_model(algorithm, Seen, rollout_buffer_class=Unordered)
    assert learns(model)
    assert model.region.n_judged == 0


class Bare(BaseBuffer):
    """Has what stock asks for, and no more."""

    def __init__(self, *args: Any, gae_lambda: float, gamma: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay, self.discount = gae_lambda, gamma

    def reset(self) -> None:
        super().reset()
        self.steps: list[Any] = []

    def add(self, *step: Any) -> None:
        self.steps.append([th.as_tensor(part).cpu().numpy().copy() for part in step])
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        stock = RolloutBuffer(
            self.buffer_size, self.observation_space, self.action_space, "cpu", self.decay, self.discount, self.n_envs
        )
        for *step, values, log_probs in self.steps:
            stock.add(*step, th.as_tensor(values), th.as_tensor(log_probs))
        stock.compute_returns_and_advantage(last_values, dones)
        self.values, self.returns, self.inner = stock.values, stock.returns, stock

    def get(self, batch_size: int | None = None) -> Any:
        next(self.inner.get())  # which makes all ready
        order = np.random.permutation(self.buffer_size * self.n_envs)  # noqa: NPY002
        for start in range(0, len(order), batch_size or len(order)):
            yield self._get_samples(order[start : start + (batch_size or len(order))])

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        return self.inner._get_samples(batch_inds, env)


@each_algorithm
def test_a_buffer_with_no_more_than_stock_asks_for(algorithm: type[Any]) -> None:
    assert learns(good_model(algorithm, rollout_buffer_class=Bare))


# Environments


class EndsAsBatches(DummyVecEnv):
    """Gives the last observation of an episode as a batch of one, which ``obs_to_tensor`` takes."""

    def step_wait(self) -> Any:
        *rest, infos = super().step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"][None]
        return *rest, infos


@each_algorithm
def test_a_last_observation_that_is_a_batch_of_one(algorithm: type[Any]) -> None:
    assert learns(bandit_model(algorithm, EndsAsBatches([Good] * 10)))


class Breaks(Good):
    """Once the reward is not a number."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.n_steps == 7 else reward, *rest


@each_algorithm
@pytest.mark.filterwarnings("ignore:.*left out of training")
@pytest.mark.parametrize("stops", [True, False])
def test_who_wants_to_stop_at_nan_is_stopped(algorithm: type[Any], stops: bool) -> None:
    env = VecCheckNan(VecNormalize(make_vec_env(Breaks, n_envs=10)), raise_exception=stops)
    model = bandit_model(algorithm, env)
    with pytest.raises(ValueError, match="found nan in rewards") if stops else nullcontext():
        model.learn(UPDATE)


@pytest.mark.filterwarnings("ignore:.*left out of training")
@pytest.mark.parametrize(("algorithm", "buffer"), shared([ByIndices, Unordered]))
def test_a_step_that_broke_is_left_out_of_any_buffer(algorithm: type[Any], buffer: type[RolloutBuffer]) -> None:
    """Each environment breaks twice, at its seventh step."""
    model = good_model(algorithm, Breaks, rollout_buffer_class=buffer)
    model.learn(UPDATE)
    assert model.n_faulty_steps == UPDATE // 10


# Modules


class OneLayer(BaseFeaturesExtractor):
    """A linear layer, as a user would write it."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space, 2)
        self.layer = th.nn.Linear(2, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


class WritesIntoItsInput(OneLayer):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        observations[:, 0] = 0.0
        return self.layer(observations.clamp_(-0.5, 0.5))


class Sparse(OneLayer):
    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        self.register_buffer("adjacency", th.eye(2).to_sparse())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(th.sparse.mm(self.adjacency, observations.T).T)


class OfEightBits(OneLayer):
    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        self.register_buffer("scale", th.ones(2).to(th.float8_e4m3fn))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations * self.scale.float())


@pytest.mark.parametrize(("algorithm", "extractor"), shared([WritesIntoItsInput, Sparse, OfEightBits]))
def test_modules_of_the_user(algorithm: type[Any], extractor: type[OneLayer]) -> None:
    model = good_model(algorithm, policy_kwargs={"features_extractor_class": extractor, "net_arch": [8]})
    assert learns(model)
    loaded = algorithm.load(_saved(model), env=model.get_env())
    assert_same(state_of(loaded.policy.value_net), state_of(model.policy.value_net))


def _saved(model: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


class Checkpointed(OneLayer):
    """As old transformers save memory."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        self.embedding = th.nn.Linear(2, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return checkpoint(self.layer, self.embedding(observations), use_reentrant=True)


def test_modules_that_only_a_whole_backward_pass_goes_through() -> None:
    """AdaptivePPO makes stock's update then, and says so."""
    kwargs = {"policy_kwargs": {"features_extractor_class": Checkpointed, "net_arch": [8]}}
    stock = good_model(PPO, learning_rate=3e-3, n_epochs=10, **kwargs).learn(2 * UPDATE)
    ours = good_model(AdaptivePPO, **kwargs)
    with pytest.warns(UserWarning, match="policy cannot be judged: .*use_reentrant"):
        ours.learn(2 * UPDATE)
    assert_same(state_of(ours.policy), state_of(stock.policy))


class NormalizesBatches(OneLayer):
    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        self.layer = th.nn.BatchNorm1d(2)  # type: ignore[assignment]


@each_algorithm
def test_whom_a_callback_has_stopped_is_in_evaluation_mode(algorithm: type[Any]) -> None:
    model = good_model(algorithm, policy_kwargs={"features_extractor_class": NormalizesBatches, "net_arch": [8]})
    model.learn(10 * UPDATE, StopTrainingOnMaxEpisodes(3))
    assert not model.policy.training
    model.policy.predict_values(th.zeros(1, 2))
    model.learn(UPDATE)
    assert model.policy.training


# Optimisers


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_weights_that_are_a_part_of_others(algorithm: type[Any]) -> None:
    model = good_model(algorithm, Seen)
    layer = model.policy.mlp_extractor.value_net[0]
    whole = th.randn(len(layer.weight), 5)
    layer.weight.data = whole[:, 1:3]
    before = whole.clone()
    model.learn(UPDATE)
    moved = whole != before
    assert moved[:, 1:3].all()
    assert not moved[:, [0, 3, 4]].any()


@each_algorithm
def test_a_loss_that_a_hook_adds_is_added_once(algorithm: type[Any]) -> None:
    model = good_model(algorithm)
    weight, seen = model.policy.action_net.weight, []

    def add(optimizer: Any, *_: Any) -> None:
        before = 0.0 if weight.grad is None else weight.grad.clone()
        weight.grad = before + 1e-3 * th.ones_like(weight)
        seen.append(float(weight.grad.abs().max()))

    model.policy.optimizer.register_step_pre_hook(add)
    model.learn(UPDATE)
    assert len(seen) > 5
    if algorithm in (NPG, AdaptiveTRPO):  # whose optimiser moves the critic alone
        assert seen == pytest.approx([1e-3] * len(seen))


class ValuesElsewhere(ActorCriticPolicy):
    """A part of the critic is no module of the policy's."""

    def _build(self, lr_schedule: Any) -> None:
        self.outside = [th.nn.Linear(2, 1)]
        super()._build(lr_schedule)
        self.optimizer.add_param_group({"params": list(self.outside[0].parameters())})

    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs) + self.outside[0](obs)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        values, *rest = super().evaluate_actions(obs, actions)
        return values + self.outside[0](obs), *rest


@each_algorithm
def test_a_critic_that_lies_outside_the_policy(algorithm: type[Any]) -> None:
    plain = good_model(algorithm)
    model = algorithm(ValuesElsewhere, plain.env, n_steps=20, batch_size=100, policy_kwargs={"net_arch": [8]}, seed=0)
    before = model.policy.outside[0].bias.detach().clone()
    model.learn(2 * UPDATE)
    assert not th.equal(model.policy.outside[0].bias, before)


class Undoes(Judge):
    """Takes every step for a disaster."""

    def perceive(self, measured: Improvement) -> Improvement:
        return Improvement(-1.0, 1e-3, measured.promise)


class Reads(BaseCallback):
    """Holds on to the optimiser's first group, and notes what the last update was logged as."""

    def _on_training_start(self) -> None:
        self.group = self.model.policy.optimizer.param_groups[0]  # type: ignore[attr-defined]
        self.seen: list[set[str]] = []

    def _on_rollout_start(self) -> None:
        self.seen.append({name for name in self.logger.name_to_value if name.startswith("train/")})

    def _on_step(self) -> bool:
        return True


OF_STOCK = {
    AdaptivePPO: "approx_kl clip_fraction clip_range entropy_loss explained_variance learning_rate loss n_updates "
    "policy_gradient_loss value_loss",
    AdaptiveTRPO: "explained_variance is_line_search_success kl_divergence_loss learning_rate n_updates "
    "policy_objective value_loss",
}


@each_judging
def test_after_a_roll_back_a_callback_finds_what_stock_logs(algorithm: type[Any]) -> None:
    model, reads = good_model(algorithm, judge_class=Undoes), Reads()
    model.learn(6 * UPDATE, reads)
    assert model.region.n_rollbacks == 3
    for seen in reads.seen[1:]:
        assert seen >= {f"train/{name}" for name in OF_STOCK[algorithm].split()}
    assert reads.group is model.policy.optimizer.param_groups[0]


# Everything else


@each_algorithm
def test_another_default_device(algorithm: type[Any]) -> None:
    model = good_model(algorithm)
    th.set_default_device("meta")
    try:
        model.learn(3 * UPDATE)
        model.get_parameters()
    finally:
        th.set_default_device(None)
    assert probability(model, 1) > 0.5


@each_judging
def test_a_subclass_that_says_itself_what_is_saved(algorithm: type[Any]) -> None:
    class Own(algorithm):  # type: ignore[valid-type, misc]
        def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
            return ["policy", "policy.optimizer"], []

    model = good_model(Own, **({"learning_rate": 3e-3} if algorithm is AdaptivePPO else {}))
    model.learn(4 * UPDATE)
    loaded = Own.load(_saved(model), env=model.get_env())
    assert loaded.region == model.region
    assert loaded.region.n_judged == 3


@each_algorithm
def test_observations_that_do_not_fit_at_once(algorithm: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same but for rounding, in pieces."""
    expected = train(make_model(algorithm), 3)
    monkeypatch.setattr(batch, "BYTES_AT_ONCE", 0)
    monkeypatch.setattr(batch, "LEAST_AT_ONCE", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train(make_model(algorithm), 3)
    for one, other in zip(expected, found, strict=True):
        assert one.logged.keys() == other.logged.keys()
        for name in ("train/kl_divergence", "train/policy_objective", "train/actual_improvement"):
            if name in one.logged:
                assert other.logged[name] == pytest.approx(one.logged[name], rel=1e-3, abs=1e-6)
