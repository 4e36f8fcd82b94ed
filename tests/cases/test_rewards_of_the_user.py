"""Rewards, advantages and returns are what the user makes of them: in callbacks, in buffers, in wrappers above."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from tests.cases.tasks import N_ENVS, UPDATE, Bandit, bandit_model, probability
from tests.helpers import MEASURING, shared

pytestmark = pytest.mark.filterwarnings("ignore:.*updates without a policy step", "ignore:The environment is already")
N_UPDATES = 6


class StepBonus(BaseCallback):
    """Pays 3 for action 1, in place or by another array."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def _on_step(self) -> bool:
        self.locals["rewards"] += 3.0 * (self.locals["actions"].ravel() == 1)
        return True


class RewardsAtTheEnd(BaseCallback):
    """Writes rewards into the full buffer and has advantages computed from them, as AIRL and GAIL do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.rewards[:] += 3.0 * (buffer.actions[..., 0] == 1)
        with th.no_grad():
            last = self.model.policy.predict_values(self.model.policy.obs_to_tensor(self.model._last_obs)[0])
        buffer.compute_returns_and_advantage(last, self.locals["dones"])


class AdvantagesAtTheEnd(BaseCallback):
    """Edits advantages alone."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.advantages[:] = np.where(buffer.actions[..., 0] == 1, 1.0, -1.0)


CALLBACKS = {
    "each step": lambda: StepBonus(in_place=True),
    "rewards at the end": RewardsAtTheEnd,
    "advantages at the end": AdvantagesAtTheEnd,
}


@pytest.mark.parametrize(
    ("algorithm", "callback", "normalize"),
    shared([("each step", True), *((name, False) for name in CALLBACKS)], AdaptiveTRPO, AdaptivePPO),
)
def test_a_callback_is_heard(algorithm: type[Any], callback: str, normalize: bool) -> None:
    env = DummyVecEnv([lambda: Bandit(0.1, 0.0)] * N_ENVS)
    model = bandit_model(algorithm, VecNormalize(env) if normalize else env)
    model.learn(N_UPDATES * UPDATE, callback=CALLBACKS[callback]())
    assert probability(model, 1) > 0.65
    # By the rewards, which say nothing of such advantages, a step may have to be undone.
    if algorithm in MEASURING and callback != "advantages at the end":
        assert model.region.n_rollbacks == 0


@pytest.mark.parametrize("algorithm", MEASURING)
@pytest.mark.parametrize("callback", ["each step", "rewards at the end"])
def test_steps_are_judged_by_the_rewards_of_the_user(algorithm: type[Any], callback: str) -> None:
    """Action 0 is the environment's, 1 the user's: as 1 takes over, the actual improvement is positive."""
    model = bandit_model(algorithm, DummyVecEnv([lambda: Bandit(1.0, 0.0)] * N_ENVS))
    model.learn(N_UPDATES * UPDATE, callback=CALLBACKS[callback]())
    assert model.region.pooled_ratio > 0.0
    assert model.region.actual > 0.0


class AddingBuffer(RolloutBuffer):
    """Pays as steps are added."""

    def add(self, obs: Any, action: Any, reward: Any, *rest: Any) -> None:
        super().add(obs, action, reward + 3.0 * (np.ravel(action) == 1), *rest)


class AdvantageBuffer(RolloutBuffer):
    """Has advantages and returns of its own."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages = self.advantages + 3.0 * (self.actions[..., 0] == 1)
        self.returns = self.advantages + self.values


class GettingBuffer(RolloutBuffer):
    """Changes advantages where they are handed out."""

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        bonus = 3.0 * (samples.actions.flatten() == 1)
        return samples._replace(advantages=samples.advantages + bonus)


class GeneratorBuffer(RolloutBuffer):
    """The same by ``get`` itself."""

    def get(self, batch_size: int | None = None) -> Any:
        for samples in super().get(batch_size):
            bonus = 3.0 * (samples.actions.flatten() == 1)
            yield samples._replace(advantages=samples.advantages + bonus)


class RewritingBuffer(RolloutBuffer):
    """Rewrites rewards before advantages are computed, as a learned reward does."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        self.rewards[:] = 3.0 * (self.actions[..., 0] == 1)
        super().compute_returns_and_advantage(last_values, dones)


class ResettingBuffer(RolloutBuffer):
    """Keeps arrays of its own beside SB3's."""

    def reset(self) -> None:
        super().reset()
        self.bonus = np.zeros((self.buffer_size, self.n_envs), dtype=np.float32)

    def add(self, obs: Any, action: Any, *rest: Any) -> None:
        self.bonus[self.pos] = 3.0 * (np.ravel(action) == 1)
        super().add(obs, action, *rest)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        self.rewards = self.rewards + self.bonus
        super().compute_returns_and_advantage(last_values, dones)


BUFFERS = [AddingBuffer, AdvantageBuffer, GettingBuffer, GeneratorBuffer, RewritingBuffer, ResettingBuffer]


@pytest.mark.parametrize(
    ("algorithm", "buffer"), [*shared(BUFFERS, others=(AdaptivePPO,)), (AdaptivePPO, GeneratorBuffer)]
)
def test_a_buffer_is_heard(algorithm: type[Any], buffer: type[RolloutBuffer]) -> None:
    env = DummyVecEnv([lambda: Bandit(0.1, 0.0)] * N_ENVS)
    model = bandit_model(algorithm, env, rollout_buffer_class=buffer)
    model.learn(N_UPDATES * UPDATE)
    assert probability(model, 1) > 0.65


class Bonus(VecEnvWrapper):
    """Pays 1 for action 1."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards + np.array([float(info["action"] == 1) for info in infos], np.float32), dones, infos


class Reward(VecEnvWrapper):
    """Throws the rewards below away, as imitation's RewardVecEnvWrapper does, with float64 and a list."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, _, dones, infos = self.venv.step_wait()
        return obs, np.array([float(info["action"] == 1) for info in infos]), dones, infos


WRAPPERS = {
    "bonus": lambda env: Bonus(VecNormalize(env)),
    "bonus between": lambda env: VecNormalize(Bonus(env)),
    "bonus above a stack": lambda env: Bonus(VecFrameStack(VecNormalize(env), 1)),
    "another reward": lambda env: Reward(VecNormalize(env)),
    "normalised twice": lambda env: VecNormalize(Bonus(VecNormalize(env, norm_reward=False))),
    "normalised below and above": lambda env: VecNormalize(Bonus(VecNormalize(env))),
    "observations alone": lambda env: Bonus(VecNormalize(env, norm_reward=False)),
    "monitored above": lambda env: VecMonitor(Bonus(VecNormalize(env))),
}


@pytest.mark.parametrize(
    ("algorithm", "wrapper"), [*shared(WRAPPERS, others=(AdaptivePPO,)), (AdaptivePPO, "another reward")]
)
def test_a_wrapper_above_is_heard(algorithm: type[Any], wrapper: str) -> None:
    model = bandit_model(algorithm, WRAPPERS[wrapper](DummyVecEnv([lambda: Monitor(Bandit())] * N_ENVS)))
    model.learn(N_UPDATES * UPDATE)
    assert probability(model, 1) > 0.65
    if algorithm in MEASURING:
        assert model.region.n_rollbacks == 0
