"""
Where no step is taken, the difference of two rollouts over its standard error has mean 0 and variance 1.

The policy stays, the critic is fitted as ever, the statistics of ``VecNormalize`` drift as ever; from the first update
on. All environments are stepped as one array, and the policy does not heed what it sees: it takes milliseconds.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trustregion.common.judge import Judge, Snapshot
from sb3_trustregion.common.learning_data import Rollout
from sb3_trustregion.common.recorder import reward_scale
from sb3_trustregion.core.improvement import Promise
from sb3_trustregion.core.radius import RadiusRule
from tests.common.rollouts import ACTOR

N_ENVS, GAMMA = 4, 0.99
N_RUNS, N_UPDATES = 10, 10
PROMISE = Promise(gain=1.0, gain_stderr=0.5, linear_gain=1.5, reliability=0.25, length=0.1, used_radius=True)

Array = npt.NDArray[Any]


class Process(VecEnv):
    """N environments as one array; a subclass says how they start and go on."""

    width = 3
    length = 50

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        super().__init__(N_ENVS, spaces.Box(-np.inf, np.inf, (self.width,)), spaces.Discrete(2))

    def start(self, n: int) -> Array:
        raise NotImplementedError

    def go_on(self, action: Array) -> tuple[Array, Array]:
        """Change ``state``; rewards and whether an episode terminates."""
        raise NotImplementedError

    def observe(self) -> Array:
        return self.state.astype(np.float32)

    def reset(self) -> Array:
        self.state, self.n_steps = self.start(N_ENVS), np.zeros(N_ENVS, dtype=np.int64)
        return self.observe()

    def step_async(self, actions: Array) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        rewards, terminated = self.go_on(self.actions)
        self.n_steps += 1
        dones = terminated | (self.n_steps >= self.length)
        infos: list[dict[str, Any]] = [{} for _ in range(N_ENVS)]
        if dones.any():
            ends = self.observe()
            for i in dones.nonzero()[0]:
                infos[i] = {"terminal_observation": ends[i], "TimeLimit.truncated": not terminated[i]}
            self.state[dones], self.n_steps[dones] = self.start(int(dones.sum())), 0
        return self.observe(), rewards, dones, infos

    def close(self) -> None: ...
    def get_attr(self, *args: Any) -> Any:
        return [None] * N_ENVS

    def set_attr(self, *args: Any) -> None: ...
    def env_method(self, *args: Any, **kwargs: Any) -> Any: ...
    def env_is_wrapped(self, *args: Any) -> Any: ...


class Noise(Process):
    """Observations with a memory and scales of their own, rewards that are mostly noise, ends by chance and by time."""

    def start(self, n: int) -> Array:
        return self.rng.standard_normal((n, 3))

    def go_on(self, action: Array) -> tuple[Array, Array]:
        self.state = 0.9 * self.state + math.sqrt(1.0 - 0.9**2) * self.rng.standard_normal(self.state.shape)
        return 5.0 + self.state[:, 0] + 3.0 * self.rng.standard_normal(N_ENVS), self.rng.random(N_ENVS) < 0.01

    def observe(self) -> Array:
        return (self.state * [1.0, 10.0, 0.1] + [5.0, 50.0, 0.0]).astype(np.float32)


class Pendulum(Process):
    """Gymnasium's, with two torques and short episodes: all environments begin and end together."""

    length = 60

    def start(self, n: int) -> Array:
        return self.rng.uniform([-np.pi, -1.0], [np.pi, 1.0], (n, 2))

    def go_on(self, action: Array) -> tuple[Array, Array]:
        angle, speed = self.state.T
        torque = np.where(action == 0, -2.0, 2.0)
        reward = -(((angle + np.pi) % (2.0 * np.pi) - np.pi) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)
        speed = np.clip(speed + (15.0 * np.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
        self.state = np.stack([angle + 0.05 * speed, speed], axis=1)
        return reward, np.zeros(N_ENVS, dtype=bool)

    def observe(self) -> Array:
        angle, speed = self.state.T
        return np.stack([np.cos(angle), np.sin(angle), speed], axis=1).astype(np.float32)


class CartPole(Process):
    """Gymnasium's: each step pays 1 until the pole falls."""

    width, length = 4, 500

    def start(self, n: int) -> Array:
        return self.rng.uniform(-0.05, 0.05, (n, 4))

    def go_on(self, action: Array) -> tuple[Array, Array]:
        _, dx, angle, spin = self.state.T
        push = np.where(action == 0, -10.0, 10.0)
        cos, sin = np.cos(angle), np.sin(angle)
        share = (push + 0.05 * spin**2 * sin) / 1.1
        turn = (9.8 * sin - cos * share) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
        pull = share - 0.05 * turn * cos / 1.1
        self.state = self.state + 0.02 * np.stack([dx, pull, spin, turn], axis=1)
        return np.ones(N_ENVS), (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 0.2095)


def indifferent(width: int, seed: int) -> ActorCriticPolicy:
    """Flips a coin in any state; its critic is as SB3 makes it."""
    th.manual_seed(seed)
    box = spaces.Box(-np.inf, np.inf, (width,))
    policy = ActorCriticPolicy(box, spaces.Discrete(2), lambda _: 1e-2, net_arch={"pi": [], "vf": [32, 32]})
    policy.set_training_mode(False)
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.zero_()
    return policy


@th.no_grad()
def collect(env: VecEnv, seen: Array, policy: ActorCriticPolicy, rng: np.random.Generator, n_steps: int) -> Rollout:
    actions = rng.integers(2, size=(n_steps, N_ENVS))
    observations, rewards, dones, scales, ends, truncated = [], [], [], [], [], []
    for t in range(n_steps):
        observations.append(seen)
        seen, reward, done, infos = env.step(actions[t])  # type: ignore[assignment]
        rewards.append(reward)
        dones.append(done)
        scales.append(reward_scale(env if isinstance(env, VecNormalize) else None, reward))
        for i in done.nonzero()[0]:
            if infos[i]["TimeLimit.truncated"]:
                ends.append(infos[i]["terminal_observation"])
                truncated.append(t * N_ENVS + int(i))
    shape, flat = (n_steps, N_ENVS), np.array(observations)

    def values(of: Array) -> Array:
        result: Array = policy.predict_values(th.as_tensor(of)).flatten().numpy()
        return result

    return Rollout(
        observations=flat,
        last_observations=seen,
        terminal_observations=np.array(ends) if ends else None,
        truncated=np.array(truncated, dtype=np.int64),
        actions=actions[..., None].astype(np.float32),
        log_probs=np.full(shape, math.log(0.5)),
        rewards=np.array(rewards, dtype=np.float64),
        values=values(flat.reshape(n_steps * N_ENVS, -1)).reshape(shape),
        last_values=values(seen),
        terminal_values=values(np.array(ends)) if ends else np.zeros(0),
        dones=np.array(dones),
        scales=np.array(scales),
        faulty=np.zeros(shape, dtype=bool),
        episode_returns=np.zeros(0),
        episode_lengths=np.zeros(0),
        gamma=GAMMA,
        is_recorded=True,
        starts_fresh=False,
    )


def fit(policy: ActorCriticPolicy, rollout: Rollout) -> None:
    """The critic to returns by GAE, λ = 0.95."""
    residuals, advantage = rollout.own_residuals(rollout.scales[-1]), np.zeros(N_ENVS)
    returns = np.zeros(rollout.shape, dtype=np.float32)
    for t in reversed(range(len(residuals))):
        advantage = residuals[t] + GAMMA * 0.95 * np.where(rollout.dones[t], 0.0, advantage)
        returns[t] = advantage + rollout.values[t]
    observations, targets = th.as_tensor(rollout.observations).flatten(0, 1), th.as_tensor(returns).flatten()
    for _ in range(5):
        loss = (policy.predict_values(observations).flatten() - targets).square().mean()
        policy.optimizer.zero_grad()
        loss.backward()
        policy.optimizer.step()


def scores_of(kind: type[Process], n_steps: int, normalise: dict[str, bool] | None, seed: int) -> list[float]:
    """Of each update but the first of a run, NaN where it was left unjudged."""
    env: VecEnv = kind(seed)
    env = env if normalise is None else VecNormalize(env, gamma=GAMMA, **normalise)
    policy, rng = indifferent(kind.width, seed), np.random.default_rng(seed + 1000)
    judge, scores = Judge(RadiusRule(kind="fixed", rollback_z=None), start=0.01, given=0.01), []
    seen: Any = env.reset()
    for _ in range(N_UPDATES):
        rollout = collect(env, seen, policy, rng, n_steps)
        measured = judge.review(rollout, policy).measured
        difference = measured.difference if measured is not None else None
        scores.append(difference.mean / difference.stderr if difference is not None else math.nan)
        before = Snapshot.of(policy, ACTOR)
        fit(policy, rollout)
        judge.expect(PROMISE, rollout, before, policy)
        seen = rollout.last_observations
    return scores[1:]


BOTH = {"norm_obs": True, "norm_reward": True}


@pytest.mark.parametrize(
    ("kind", "n_steps", "normalise", "least"),
    [
        (Noise, 64, None, 0.5),
        (Noise, 64, BOTH, 0.4),
        # Residuals of a critic that knows little cancel over an episode, which is longer than a block: the safe side.
        (Pendulum, 60, BOTH, 0.15),
        (CartPole, 64, BOTH, 0.3),
    ],
)
def test_without_a_step_the_actual_improvement_is_calibrated(
    kind: type[Process], n_steps: int, normalise: dict[str, bool] | None, least: float
) -> None:
    scores = np.array([scores_of(kind, n_steps, normalise, seed) for seed in range(N_RUNS)])
    apart = scores[:, ::2]  # neighbours share a rollout
    apart = apart[np.isfinite(apart)]
    assert len(apart) > 0.6 * 5 * N_RUNS
    assert abs(apart.mean()) < 3.0 / math.sqrt(len(apart))
    assert least < apart.var() < 1.5
    assert not (np.abs(scores) > 4.5).any()
