"""What stock leaves to the user, who may make something of it before it is learned from."""

import io
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from tests.cases.tasks import UPDATE, Bandit, bandit_model, probability
from tests.helpers import ALGORITHMS, make_model, shared, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_judging = pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])


class Failing(Bandit):
    """Where the second action fails, the reward is not a number."""

    def __init__(self) -> None:
        super().__init__(0.0, float("nan"))


class FilledAsAdded(RolloutBuffer):
    def add(self, obs: Any, action: Any, reward: Any, *rest: Any) -> None:
        super().add(obs, action, np.nan_to_num(reward, nan=-1.0), *rest)


class FilledForAdvantages(RolloutBuffer):
    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        self.rewards = np.nan_to_num(self.rewards, nan=-1.0)
        super().compute_returns_and_advantage(last_values, dones)


class FillsAtTheEnd(BaseCallback):
    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.rewards[np.isnan(buffer.rewards)] = -1.0
        buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("algorithm", "buffer", "callback"),
    shared([(FilledAsAdded, None), (FilledForAdvantages, None), (None, FillsAtTheEnd)]),
)
def test_rewards_that_the_user_makes_numbers_of(algorithm: type[Any], buffer: Any, callback: Any) -> None:
    model = bandit_model(algorithm, make_vec_env(Failing, n_envs=10), rollout_buffer_class=buffer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*left out of training")
        model.learn(10 * UPDATE, callback=callback and callback())
    assert probability(model, 1) < 0.2
    assert model.n_faulty_steps == 0


@each_algorithm
@pytest.mark.filterwarnings("ignore:.*left out of training")
def test_rewards_of_which_nobody_makes_numbers_are_left_out(algorithm: type[Any]) -> None:
    model = bandit_model(algorithm, make_vec_env(Failing, n_envs=10))
    model.learn(UPDATE)
    assert 0 < model.n_faulty_steps < UPDATE
    assert np.isfinite(model.rollout_buffer.advantages).all()


class Crash(Bandit):
    """The second action costs one and ends the episode; nothing is observed any more."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, ended, _, info = super().step(action)
        if int(action) == 1:
            return np.full(2, np.nan, np.float32), -1.0, True, False, info
        return observation, 0.0, False, ended, info


@pytest.mark.parametrize(("algorithm", "normalized"), shared([False, True]))
def test_an_episode_ends_by_itself_where_nothing_can_be_observed(algorithm: type[Any], normalized: bool) -> None:
    env = make_vec_env(Crash, n_envs=10)
    model = bandit_model(algorithm, VecNormalize(env) if normalized else env)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*left out of training")
        model.learn(10 * UPDATE)
    assert probability(model, 1) < 0.2
    assert model.n_faulty_steps == 0


class SeveralReturns(gym.Wrapper[Any, Any, Any, Any]):
    """As wrappers for several objectives tell of episodes."""

    def __init__(self, env: Any, shape: tuple[int, ...]) -> None:
        super().__init__(env)
        self.shape = shape

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info["episode"] = {"r": np.ones(self.shape), "l": np.ones(self.shape), "t": 0.0}
        return observation, reward, terminated, truncated, info


@each_algorithm
@pytest.mark.parametrize("shape", [(2,), (1,)])
def test_returns_of_several_objectives(algorithm: type[Any], shape: tuple[int, ...]) -> None:
    def make() -> Any:
        return SeveralReturns(Bandit(1.0, 0.0), shape)

    env = make_vec_env(make, n_envs=2, wrapper_class=None)
    bandit_model(algorithm, env, stats_window_size=1).learn(2 * 2 * 20)


class ActsBy(BaseCallback):
    """Other weights collect each rollout than those that are trained."""

    def _on_rollout_start(self) -> None:
        self.trained = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
        with th.no_grad():
            self.model.policy.action_net.bias.add_(th.tensor([0.3, 0.0]))

    def _on_rollout_end(self) -> None:
        self.model.policy.load_state_dict(self.trained)

    def _on_step(self) -> bool:
        return True


@each_judging
def test_what_other_weights_bring_is_not_held_against_a_step(algorithm: type[Any]) -> None:
    model = bandit_model(algorithm, make_vec_env(lambda: Bandit(1.0, 0.0), n_envs=10))
    with pytest.warns(UserWarning, match="10 steps in a row were judged by nobody, now because the policy"):
        model.learn(12 * UPDATE, callback=ActsBy())
    assert model.judge.state.n_judged == model.judge.state.n_rollbacks == 0


@each_judging
def test_who_sets_the_environment_anew_is_told_that_nothing_is_judged(algorithm: type[Any]) -> None:
    model = make_model(algorithm)

    def go_on() -> None:
        for _ in range(11):
            model.set_env(model.get_env())
            train(model, 1)

    with pytest.warns(UserWarning, match="10 steps in a row were judged by nobody, now because environment"):
        go_on()
    assert model.judge.state.n_judged == 0


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_the_critics_gradients_are_accumulated_as_by_backward(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    weight = model.policy.value_net.weight
    held = weight.detach().clone()

    def hold(parameter: th.Tensor) -> None:
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(hold)
    train(model, 2)
    assert th.equal(weight, held)


class Centred(th.nn.Module):
    """Follows the mean of what it sees while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(2))
        self.n_seen = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if self.training:
            self.n_seen += len(observations)
        return observations - self.mean


def test_statistics_see_a_rollout_as_often_as_the_critic_is_fitted() -> None:
    model = bandit_model(NPG, make_vec_env(lambda: Bandit(1.0, 0.0), n_envs=10), n_critic_updates=4)
    model.policy.mlp_extractor.policy_net.insert(0, Centred())
    model.learn(UPDATE)
    assert model.policy.mlp_extractor.policy_net[0].n_seen >= 4 * UPDATE


def test_a_clip_range_may_be_left_out_of_the_file() -> None:
    file, model = io.BytesIO(), make_model(AdaptivePPO)
    model.save(file, exclude=["clip_range"])
    file.seek(0)
    loaded = AdaptivePPO.load(file, env=model.get_env(), clip_range=0.1)
    train(loaded, 1)
    assert loaded.clip_range(1.0) == 0.1


class Locked(RolloutBuffer):
    """Its own way to hand out samples, and things in a dict that cannot be copied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = {"generator": (number for number in range(3)), "graph": th.ones(1, requires_grad=True) * 2.0}

    def get(self, batch_size: int | None = None) -> Any:
        yield from super().get(batch_size)


@each_algorithm
def test_a_buffer_may_hold_what_has_no_copy(algorithm: type[Any]) -> None:
    model = bandit_model(algorithm, make_vec_env(lambda: Bandit(1.0, 0.0), n_envs=10), rollout_buffer_class=Locked)
    model.learn(2 * UPDATE)


class Outweighs(BaseCallback):
    """Makes samples of the second action count for next to nothing, though it is the best one."""

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.log_probs[buffer.actions[..., 0] == 1] += 30.0

    def _on_step(self) -> bool:
        return True


@each_algorithm
@pytest.mark.filterwarnings("ignore:.*without a policy step in a row")
def test_samples_count_by_the_log_probabilities_of_the_buffer(algorithm: type[Any]) -> None:
    def learned(callback: BaseCallback | None) -> float:
        env = make_vec_env(lambda: Bandit(1.0, 2.0), n_envs=10)
        model = bandit_model(algorithm, env, gamma=0.0, normalize_advantage=False)
        with th.no_grad():
            model.policy.value_net.weight.zero_()  # no baseline: both actions are worth more than nothing
        for parameter in model.policy.value_net.parameters():
            parameter.requires_grad = False
        model.learn(5 * UPDATE, callback=callback)
        return probability(model, 1)

    assert learned(Outweighs()) < 0.4 < 0.6 < learned(None)


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_hooks_that_clip_what_is_never_so_large_change_nothing(algorithm: type[Any]) -> None:
    def kl(clipped: bool) -> float:
        model = bandit_model(algorithm, make_vec_env("Pendulum-v1", n_envs=4), n_steps=256)
        for parameter in model.policy.parameters() if clipped else ():
            parameter.register_hook(lambda gradient: gradient.clamp(-10.0, 10.0))
        train(model, 2)
        return float(model.logger.name_to_value["train/kl_divergence"])

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "policy cannot be differentiated twice")
        assert kl(True) == pytest.approx(kl(False), rel=0.01)
