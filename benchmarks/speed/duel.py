"""Ours and stock TRPO on the same rollouts, and what each part of their updates takes."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.speed.plan import CNN
from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.common.learning_data import make_batch
from sb3_trustregion.common.on_policy import find_actor
from sb3_trustregion.core.batch import Batch
from sb3_trustregion.core.parameters import ParameterVector

Clock = Callable[[], float]
# By name: when it was called and when it returned.
Marks = dict[str, list[tuple[float, float]]]
HOPPER = "Hopper-v5"


def clock_of(device: str) -> Clock:
    """
    :param device: where the work is done
    :return: a clock in seconds: of this process alone on a CPU, so that others on the machine disturb less
    """
    if device == "cpu":
        return time.process_time

    def now() -> float:
        th.cuda.synchronize()
        return time.perf_counter()

    return now


def timed(clock: Clock, function: Callable[[], Any]) -> float:
    """
    :param clock: the clock
    :param function: what to time
    :return: milliseconds
    """
    start = clock()
    function()
    return 1e3 * (clock() - start)


class RandomEnv(gym.Env[Any, Any]):
    """
    Random observations and rewards of any size, at next to no cost.

    :param images: whether observations are images
    :param action_dim: dimensions of the action
    """

    def __init__(self, images: bool, action_dim: int) -> None:
        self.observation_space = (
            gym.spaces.Box(0, 255, (4, 84, 84), np.uint8) if images else gym.spaces.Box(-1.0, 1.0, (17,))
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (action_dim,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of all that follows
        :param options: none are known
        :return: the first observation
        """
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: changes nothing
        :return: the step
        """
        ended = bool(self.np_random.random() < 0.01)
        return self.observation_space.sample(), float(self.np_random.normal()), ended, False, {}


def random_env(n_samples: int, width: int = 64, action_dim: int = 6) -> tuple[VecEnv, int]:
    """
    :param n_samples: of a rollout
    :param width: of the network that will see it
    :param action_dim: dimensions of the action
    :return: environments and the steps that each makes in a rollout
    """
    n_envs = min(16, n_samples // 2)
    env = make_vec_env(lambda: RandomEnv(width == CNN, action_dim), n_envs, seed=0)
    return env, n_samples // n_envs


def env_for(width: int, n_steps: int) -> tuple[VecEnv, int]:
    """
    :param width: of the network
    :param n_steps: of a rollout
    :return: Hopper with statistics, as RL Zoo has it, or random images for the CNN; steps that each makes in a rollout
    """
    if width == CNN:
        return random_env(n_steps, width)
    return VecNormalize(make_vec_env(HOPPER, n_envs=1, seed=0)), n_steps


class Times(NamedTuple):
    """
    Of one ``train()``.

    :param policy: tensors of the rollout, gradient, direction and line search, milliseconds; what ours measures of the
        step before, and what it promises of this one, are in ``train`` alone
    :param critic: fit of the critic, milliseconds
    :param train: all of it, milliseconds
    """

    policy: float
    critic: float
    train: float


PARTS = {"policy": "policy step", "critic": "critic fit", "train": "train()"}


class Duel:
    """
    Ours on a run, and a stock TRPO with its defaults that is given the same actor and the same rollouts.

    Each keeps its own critic and its own optimiser's state; both are fitted to the same returns, which our critic had a
    part in.

    :param env: where ours learns
    :param n_steps: length of a rollout
    :param width: of the hidden layers
    :param device: where the networks are
    :param ours: further arguments of ours
    """

    def __init__(self, env: VecEnv, n_steps: int, width: int, device: str, **ours: Any) -> None:
        policy = "CnnPolicy" if width == CNN else "MlpPolicy"
        common: dict[str, Any] = {"n_steps": n_steps, "device": device, "seed": 0}
        if width != CNN:
            common["policy_kwargs"] = {"net_arch": [width, width]}
        self.clock = clock_of(device)
        self.ours = AdaptiveTRPO(policy, env, **common, **ours)
        self.stock = TRPO(policy, env, **common)
        self.stock.policy.load_state_dict(self.ours.policy.state_dict())
        self.stock._setup_learn(10**9)
        _, self.callback = self.ours._setup_learn(10**9)
        self.callback.on_training_start({}, {})

    @th.no_grad()
    def collect(self) -> None:
        """A new rollout for both."""
        ours, stock = self.ours, self.stock
        assert ours.env is not None
        ours.collect_rollouts(ours.env, self.callback, ours.rollout_buffer, ours.n_steps)
        stock.rollout_buffer = copy.deepcopy(ours.rollout_buffer)
        theirs, mine = dict(stock.policy.named_parameters()), dict(ours.policy.named_parameters())
        for name in self.actor().names:
            theirs[name].copy_(mine[name])

    def batch(self) -> Batch:
        """The rollout as ours learns from it."""
        buffer = self.ours.rollout_buffer
        return make_batch(buffer, np.zeros((buffer.buffer_size, buffer.n_envs), dtype=bool))

    def actor(self) -> ParameterVector:
        """Which parameters act."""
        return find_actor(self.ours.policy, self.batch())

    @th.no_grad()
    def monte_carlo(self) -> th.Tensor:
        """Returns of the rollout in which no critic has a part, but for the ends, where ours has."""
        buffer = copy.deepcopy(self.ours.rollout_buffer)
        buffer.gae_lambda = 1.0
        assert self.ours._last_episode_starts is not None
        last = self.ours.policy.predict_values(obs_as_tensor(self.ours._last_obs, self.ours.device))  # type: ignore[arg-type]
        buffer.compute_returns_and_advantage(last, self.ours._last_episode_starts)
        return th.as_tensor(buffer.swap_and_flatten(buffer.returns).ravel(), device=self.ours.device)

    def train(self, stock_first: bool) -> tuple[Times, Times] | None:
        """
        Both update.

        :param stock_first: who begins
        :return: times of ours and of stock; None where ours took no step
        """
        if stock_first:
            theirs = self._train_stock()
        mine = self._train_ours()
        if not stock_first:
            theirs = self._train_stock()
        return None if mine is None else (mine, theirs)

    def _train_ours(self) -> Times | None:
        marks: Marks = {}
        with (
            spied(self.ours, "_gather", marks, self.clock),
            spied(self.ours, "_promise", marks, self.clock),
            spied(self.ours, "_take", marks, self.clock),
            spied(self.ours, "_fit_critic", marks, self.clock),
        ):
            whole = timed(self.clock, self.ours.train)
        if "_fit_critic" not in marks:
            return None
        ((begin, _),), ((_, end),), ((fit, fitted),) = marks["_gather"], marks["_take"], marks["_fit_critic"]
        ((asked, promised),) = marks["_promise"]
        return Times(1e3 * (end - begin - (promised - asked)), 1e3 * (fitted - fit), whole)

    def _train_stock(self) -> Times:
        """It asks the buffer for data first for the policy step, then for each pass of the critic."""
        marks: Marks = {}
        with spied(self.stock.rollout_buffer, "get", marks, self.clock):
            whole = timed(self.clock, self.stock.train)
            end = self.clock()
        policy, critic = (begin for begin, _ in marks["get"][:2])
        return Times(1e3 * (critic - policy), 1e3 * (end - critic), whole)


@contextmanager
def spied(owner: Any, name: str, marks: Marks, clock: Clock) -> Iterator[None]:
    """
    Note when a method is called and when it returns.

    :param owner: an object
    :param name: of its method
    :param marks: where it is noted
    :param clock: the clock
    """
    method = getattr(owner, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        begin = clock()
        result = method(*args, **kwargs)
        marks.setdefault(name, []).append((begin, clock()))
        return result

    setattr(owner, name, noting)
    try:
        yield
    finally:
        delattr(owner, name)
