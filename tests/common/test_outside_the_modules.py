"""What users keep elsewhere than in the policy's modules, the buffer and a plain optimiser's state, and stock takes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.common import judge, on_policy
from sb3_trustregion.common.judge import Judge
from sb3_trustregion.common.learning_data import Rollout, in_time
from sb3_trustregion.core import distributions, surrogate
from sb3_trustregion.core.improvement import Improvement
from tests.cases.tasks import N_ENVS, NATURAL, UPDATE, Bandit, bandit_model, probability
from tests.helpers import ALGORITHMS, MEASURING, make_model, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_judging = pytest.mark.parametrize("algorithm", MEASURING)


def bandits() -> VecEnv:
    return make_vec_env(lambda: Bandit(0.0, 1.0), N_ENVS)


# Parameters that act by a reference of their own


class ByReference(BaseFeaturesExtractor):
    """Adds a parameter that it looks up in a list."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        super().__init__(observation_space, 2)
        self.shift = th.nn.Parameter(th.ones(2))
        self.all = [self.shift]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations + self.all[0]


class Borrowing(FlattenExtractor):
    """Adds what belongs to nobody in the policy, and only the optimiser knows."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        super().__init__(observation_space)
        self.lent = [th.nn.Parameter(th.ones(2))]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) + self.lent[0]


@pytest.mark.parametrize("algorithm", NATURAL)
def test_what_no_trial_point_reaches_is_named(algorithm: type[Any]) -> None:
    """Else it would silently stay as it is."""
    model = bandit_model(algorithm, bandits(), policy_kwargs={"features_extractor_class": ByReference})
    with pytest.raises(RuntimeError, match=r"policy must act by what its modules hold.*features_extractor\.shift"):
        model.learn(UPDATE)


@pytest.mark.parametrize("algorithm", [AdaptivePPO, PenaltyPPO])
def test_adam_reaches_it(algorithm: type[Any]) -> None:
    model = bandit_model(algorithm, bandits(), policy_kwargs={"features_extractor_class": ByReference})
    model.learn(10 * UPDATE)
    assert not th.equal(model.policy.features_extractor.shift, th.ones(2))
    assert probability(model, 1) > 0.9


@pytest.mark.parametrize("algorithm", [AdaptivePPO, AdaptiveTRPO])
def test_what_others_own_is_not_half_undone(algorithm: type[Any]) -> None:
    """AdaptivePPO's epochs would move it, and no roll-back would bring it back; TRPO's step leaves it alone."""
    model = bandit_model(algorithm, bandits(), policy_kwargs={"features_extractor_class": Borrowing})
    model.policy.optimizer.add_param_group({"params": model.policy.features_extractor.lent})
    model.learn(5 * UPDATE)
    assert (model.region.n_judged > 0) == (algorithm is AdaptiveTRPO)


# State of the optimiser


class Masked(th.optim.SGD):
    """Moves what its mask says, sums in double precision, and counts; notes a type too where one is given."""

    def __init__(self, params: Any, kind: th.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.kind = kind

    @th.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["mask"] = th.rand_like(parameter) < 0.8
                state["sum"] = th.zeros_like(parameter, dtype=th.float64)
                state["count"] = th.zeros((), dtype=th.int64)
                if self.kind is not None:
                    state["kind"] = self.kind
            state["count"] += 1
            state["sum"] += parameter.grad
            moved = state["mask"].bool()  # a file gives it back as numbers
            parameter[moved] -= 0.01 * parameter.grad[moved]


class Strict(Judge):
    """Finds every other step a disaster."""

    n_seen = 0

    def perceive(self, measured: Improvement) -> Improvement:
        self.n_seen += 1
        return measured._replace(actual=-1.0, stderr=1e-3, difference=None) if self.n_seen % 2 else measured


def test_a_roll_back_leaves_the_types_of_the_optimisers_state() -> None:
    """Torch's own ``load_state_dict`` makes numbers of the parameter's type of them."""
    model = make_model(AdaptivePPO, judge_class=Strict, policy_kwargs={"net_arch": [8], "optimizer_class": Masked})
    train(model, n_updates=6)
    state = model.policy.optimizer.state[model.policy.value_net.weight]
    assert {name: value.dtype for name, value in state.items()} == {
        "mask": th.bool,
        "sum": th.float64,
        "count": th.int64,
    }
    assert model.region.n_rollbacks > 0
    assert model.policy.optimizer.state.keys() <= set(model.policy.parameters())


@each_judging
def test_a_type_in_the_optimisers_state_costs_no_file(algorithm: type[Any], tmp_path: Path) -> None:
    kwargs = {"net_arch": [8], "optimizer_class": Masked, "optimizer_kwargs": {"kind": th.float16}}
    model = make_model(algorithm, policy_kwargs=kwargs)
    train(model, n_updates=2)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env())
    states = loaded.policy.optimizer.state.values()
    assert {state["kind"] for state in states} == {th.float16}
    assert (loaded.judge.pending is None) == (algorithm is AdaptivePPO)  # whose roll-back would need it
    train(loaded, n_updates=2)


# Rewards that a normaliser of one's own divides


class ByAHundred(VecNormalize):
    """Its statistics go on, and say nothing of what it does."""

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        return reward / 100.0


class WithoutStatistics(ByAHundred):
    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        del self.ret_rms

    def _update_reward(self, reward: np.ndarray) -> None:
        pass


@each_judging
@pytest.mark.parametrize("wrapper", [ByAHundred, WithoutStatistics])
def test_a_normaliser_of_ones_own(algorithm: type[Any], wrapper: type[VecNormalize]) -> None:
    model = bandit_model(algorithm, wrapper(make_vec_env(lambda: Bandit(0.0, 100.0), N_ENVS)))
    model.learn(3 * UPDATE)
    assert model.judge.pending.scale == 1.0
    assert model.region.n_judged == 2


# Buffers


class Looks(BaseCallback):
    """Evaluates in rollouts of its own, as long as those of training and collected by the model, before each update."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        kept = model._last_obs, model._last_episode_starts, model.num_timesteps
        other = make_vec_env(lambda: Bandit(-7.0, -9.0), N_ENVS)
        model._last_obs, model._last_episode_starts = other.reset(), np.ones(N_ENVS, dtype=bool)
        buffer = RolloutBuffer(model.n_steps, model.observation_space, model.action_space, "cpu", n_envs=N_ENVS)
        quiet = CallbackList([])
        quiet.init_callback(model)
        model.collect_rollouts(other, quiet, buffer, model.n_steps)
        model._last_obs, model._last_episode_starts, model.num_timesteps = kept
        assert buffer.rewards.max() == -7.0


@each_judging
def test_rollouts_of_ones_own_are_not_taken_for_those_of_training(algorithm: type[Any]) -> None:
    seen: list[Rollout] = []
    model = bandit_model(algorithm, make_vec_env(lambda: Bandit(1.0, 2.0), N_ENVS))
    record = model.rollout_recorder.rollout
    model.rollout_recorder.rollout = lambda of: seen.append(record(of)) or seen[-1]
    model.learn(4 * UPDATE, callback=Looks())
    assert len(seen) == 4
    assert all(rollout.is_recorded and rollout.rewards.min() >= 1.0 for rollout in seen)
    assert (model.region.n_judged >= 2, model.judge.n_unjudged_in_a_row) == (True, 0)


@pytest.mark.parametrize("algorithm", [PPO, TRPO, *ALGORITHMS])
def test_the_buffer_is_left_as_by_stock(algorithm: type[Any]) -> None:
    """For who asks the policy about what is in there."""
    model = bandit_model(algorithm, bandits()).learn(UPDATE)
    buffer = model.rollout_buffer
    assert buffer.generator_ready
    assert buffer.observations.shape == (UPDATE, 2)
    assert buffer.advantages.shape == buffer.values.shape == (UPDATE, 1)
    assert buffer.rewards.shape == (model.n_steps, N_ENVS)
    in_order = in_time(buffer, "values").swapaxes(0, 1).reshape(UPDATE, 1)
    np.testing.assert_array_equal(buffer.values, in_order)
    model.policy.predict_values(th.as_tensor(buffer.observations))


# Last observations


class Camera(gym.Env[Any, Any]):
    """All red or all blue, channel last."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.n_steps = 0
        return self._image(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return self._image(), float(action), False, self.n_steps >= 8, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((36, 36, 3), np.uint8)
        image[:, :, 2 * (self.n_steps % 2)] = 255
        return image


class ChannelFirst(VecEnvWrapper):
    """Turns observations, and leaves the last ones to ``obs_to_tensor``."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, observation_space=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))

    def reset(self) -> Any:
        return self.venv.reset().transpose(0, 3, 1, 2)  # type: ignore[union-attr]

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return observations.transpose(0, 3, 1, 2), *rest  # type: ignore[union-attr]


class Colours(BaseFeaturesExtractor):
    def __init__(self, observation_space: gym.spaces.Box) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.mean((2, 3))


@each_judging
def test_last_observations_are_those_that_stock_sees(algorithm: type[Any]) -> None:
    kwargs = {"net_arch": [8], "features_extractor_class": Colours}
    model = make_model(algorithm, ChannelFirst(DummyVecEnv([Camera] * 2)), "CnnPolicy", policy_kwargs=kwargs)
    record, ends = model.rollout_recorder.rollout, []
    model.rollout_recorder.rollout = lambda of: ends.append(record(of)) or ends[-1]
    train(model, n_updates=2)
    colours = ends[0].terminal_observations.mean((2, 3)) / 255
    np.testing.assert_array_equal(colours, [[1, 0, 0]] * len(colours))
    assert len(colours) > 0


# Arguments and devices


def test_a_clip_range_that_asks_the_model() -> None:
    """Which has no name yet while it is made."""
    made: dict[str, Any] = {}
    model = made["model"] = make_model(
        AdaptivePPO, clip_range=lambda _: 0.2 if made["model"].num_timesteps < 64 else 0.1
    )
    train(model, n_updates=3)
    assert (model.region.n_judged, model.region.given) == (2, 0.1)
    made["model"] = None
    with pytest.raises(AttributeError):
        train(make_model(AdaptivePPO, clip_range=lambda _: made["model"].num_timesteps), n_updates=1)


class Checkpointed(FlattenExtractor):
    """Saves memory in a way that autograd.grad cannot follow."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        super().__init__(observation_space)
        self.layer = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        flat = super().forward(observations).requires_grad_()
        result: th.Tensor = th.utils.checkpoint.checkpoint(self.layer, flat, use_reentrant=True)
        return result


def test_a_penalty_needs_no_gradient_of_the_distribution() -> None:
    kwargs = {"net_arch": [8], "features_extractor_class": Checkpointed}
    model = make_model(PenaltyPPO, policy_kwargs=kwargs)
    train(model, n_updates=2)
    assert model.n_invalid == 0


@each_algorithm
def test_a_device_without_double_precision(algorithm: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's has none: tensors are made double by the one function that knows."""
    model = make_model(algorithm)
    apples: Any = SimpleNamespace(device=th.device("mps"))
    assert distributions.in_double(apples) is apples
    assert distributions.in_double(th.ones(2)).dtype == th.float64
    for module in (distributions, surrogate, judge, on_policy):
        monkeypatch.setattr(module, "in_double", lambda tensor: tensor)

    def refuse(tensor: th.Tensor) -> th.Tensor:
        raise TypeError("no double precision here")

    monkeypatch.setattr(th.Tensor, "double", refuse)
    train(model, n_updates=3)
    assert algorithm not in MEASURING or model.region.n_judged == 2
