"""
How long updates take, beside the stock algorithms: ``make bench-speed``.

Every figure is a ratio within one run. Ours and the peer's take turns on the same batch, a row gives the medians and
quartiles of both and of the ratios of neighbours. On a CPU the clock is that of this process alone, so that others on
the machine disturb less; PyTorch has one thread. On CUDA it is the wall clock, read after synchronising.

The peer of an update is ``sb3_contrib.TRPO`` with its defaults, given the same policy and the same rollout. Its
``train()`` is taken apart by when it asks the rollout buffer for data: first for the policy step, then for the critic.
"""

import argparse
import copy
import csv
import math
import multiprocessing
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.functional import ValueHead
from sb3_trustregion.core.surrogate import Batch, Surrogate
from sb3_trustregion.recording import centred

Array = npt.NDArray[np.floating[Any]]
Clock = Callable[[], float]
HOPPER, CARTPOLE = "Hopper-v5", "CartPole-v1"
# Stock TRPO's default radius is 0.01 nats per action dimension, and Hopper has three.
STOCK_RADIUS = 0.03
# The batch of the tables of growth in parameters and action dimensions, and of the rows that need no real task.
GROWTH_SAMPLES = 2048
UPDATE_PARTS = {"policy": "policy step", "critic": "critic fit", "train": "train()"}


class Plan(NamedTuple):
    """
    How much is measured.

    :param networks: widths of the two hidden layers; 0 for the CNN of SB3
    :param n_updates: updates of a real run
    :param n_products: Fisher-vector products of each kind
    :param n_rounds: rounds of ``learn``
    :param n_steps: length of a rollout
    :param samples: batch sizes, for the table of growth
    :param widths: of the hidden layers, likewise
    :param action_dims: likewise
    """

    networks: tuple[int, ...] = (64, 256)
    n_updates: int = 52
    n_products: int = 60
    n_rounds: int = 3
    n_steps: int = 2048
    samples: tuple[int, ...] = (512, 2048, 8192, 32768)
    widths: tuple[int, ...] = (64, 128, 256, 560, 1110, 2220)
    action_dims: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


QUICK = Plan((8,), 3, 2, 1, 64, (32, 64), (4, 8), (1, 2))
# A batch of images fills more of a CPU's time than this program should take: they are for CUDA.
CUDA_NETWORKS = (64, 256, 1024, 0)


class Row(NamedTuple):
    """
    One line of the table.

    :param section: which question it answers
    :param what: what was measured
    :param setting: of which network or task, or at which size
    :param unit: of ``ours`` and ``peer``
    :param peer_name: who the peer is
    :param n: number of pairs
    :param ours: median
    :param ours_q1: first quartile
    :param ours_q3: third quartile
    :param peer: median
    :param peer_q1: first quartile
    :param peer_q3: third quartile
    :param ratio: median of ours / peer, pair by pair
    :param ratio_q1: first quartile
    :param ratio_q3: third quartile
    :param goal: what the ratio is to reach; empty where nothing was promised
    :param reached: yes or no
    """

    section: str
    what: str
    setting: str
    unit: str
    peer_name: str
    n: int
    ours: float
    ours_q1: float
    ours_q3: float
    peer: float
    peer_q1: float
    peer_q3: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    goal: str
    reached: str


class Pairs(NamedTuple):
    """
    Measurements in turns.

    :param ours: shape (n,)
    :param peer: shape (n,)
    """

    ours: list[float]
    peer: list[float]

    def add(self, ours: float, peer: float) -> None:
        """
        :param ours: one measurement
        :param peer: its neighbour
        """
        self.ours.append(ours)
        self.peer.append(peer)

    def row(self, section: str, what: str, setting: str, unit: str, goal: str = "", peer: str = "TRPO") -> Row:
        """
        :param section: which question is answered
        :param what: what was measured
        :param setting: of which network, task or size
        :param unit: of the measurements
        :param goal: such as "<= 0.5", what the median ratio is to reach
        :param peer: who the peer is
        :return: medians and quartiles
        """
        ours, other = np.array(self.ours), np.array(self.peer)
        ratios = ours / other
        figures = [float(q) for x in (ours, other, ratios) for q in np.percentile(x, [50.0, 25.0, 75.0])]
        return Row(section, what, setting, unit, peer, len(ours), *figures, goal, verdict(figures[6], goal))


def verdict(value: float, goal: str) -> str:
    """
    :param value: what was measured
    :param goal: "<= bound", "> bound" or empty
    :return: whether it was reached; empty without a goal
    """
    if not goal:
        return ""
    relation, bound = goal.split()
    reached = value <= float(bound) if relation == "<=" else value > float(bound)
    return "yes" if reached else "no"


def clock_of(device: str) -> Clock:
    """
    :param device: where the work is done
    :return: a clock in seconds
    """
    if device == "cpu":
        return time.process_time

    def now() -> float:
        th.cuda.synchronize()
        return time.perf_counter()

    return now


# --- models, environments -------------------------------------------------------------------------------------------


class RandomVecEnv(VecEnv):
    """
    Random observations, rewards and ends at no cost, of any size.

    :param n_envs: number of environments
    :param observation_space: what is observed
    :param action_dim: dimensions of the action
    """

    def __init__(self, n_envs: int, observation_space: gym.spaces.Box, action_dim: int) -> None:
        super().__init__(n_envs, observation_space, gym.spaces.Box(-1.0, 1.0, (action_dim,)))
        self.generator = np.random.default_rng(0)

    def _observe(self) -> npt.NDArray[Any]:
        shape = (self.num_envs, *self.observation_space.shape)  # type: ignore[misc]
        if self.observation_space.dtype == np.uint8:
            return self.generator.integers(0, 256, shape, np.uint8)
        return self.generator.standard_normal(shape, np.float32)

    def reset(self) -> npt.NDArray[Any]:
        """
        :return: the first observations
        """
        return self._observe()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """
        :param actions: what is done, which changes nothing
        """

    def step_wait(self) -> tuple[Any, Any, Any, Any]:
        """
        :return: the step
        """
        rewards = self.generator.standard_normal(self.num_envs, np.float32)
        dones = self.generator.random(self.num_envs) < 0.01
        observations = self._observe()
        ends = [{"terminal_observation": last} if done else {} for last, done in zip(observations, dones, strict=True)]
        return observations, rewards, dones, ends

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """
        :param attr_name: an attribute
        :param indices: of which environments
        :return: it has none of them
        """
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """
        :param attr_name: an attribute
        :param value: its value
        :param indices: of which environments
        """

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """
        :param method_name: a method
        :param args: its arguments
        :param indices: of which environments
        :param kwargs: its arguments
        :return: it has none of them
        """
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """
        :param wrapper_class: a wrapper
        :param indices: of which environments
        :return: it has none
        """
        return [False] * self.num_envs


def network_name(width: int) -> str:
    """
    :param width: of the hidden layers
    :return: how the table calls the network
    """
    return f"{width}x{width}" if width else "CNN"


def random_env(n_samples: int, width: int = 64, action_dim: int = 6) -> tuple[VecEnv, int]:
    """
    :param n_samples: of a rollout
    :param width: of the network that will see it; 0 for one of images
    :param action_dim: dimensions of the action
    :return: environments and the steps that each makes in a rollout
    """
    image = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    vector = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
    n_envs = min(16, n_samples)
    return RandomVecEnv(n_envs, vector if width else image, action_dim), n_samples // n_envs


def task(name: str) -> VecEnv:
    """
    :param name: of the task
    :return: one environment with statistics, as RL Zoo has it for these tasks
    """
    return VecNormalize(make_vec_env(name, n_envs=1, seed=0))


class Times(NamedTuple):
    """
    Of one ``train()``.

    :param policy: gradient, direction and line search, seconds
    :param critic: fit of the critic, seconds
    :param train: all of it, seconds
    """

    policy: float
    critic: float
    train: float


class Duel:
    """
    Ours on a real run, and a stock TRPO that is given the same actor and the same rollouts.

    Each keeps its own critic and its own optimiser's state.

    :param env: where ours learns
    :param width: of the hidden layers; 0 for a CNN
    :param n_steps: length of a rollout
    :param device: where the networks are
    :param ours: further arguments of ours
    """

    def __init__(self, env: VecEnv, width: int, n_steps: int, device: str, **ours: Any) -> None:
        common: dict[str, Any] = {"n_steps": n_steps, "device": device, "seed": 0}
        if width:
            common["policy_kwargs"] = {"net_arch": [width, width]}
        self.name = "MlpPolicy" if width else "CnnPolicy"
        self.clock = clock_of(device)
        self.ours = AdaptiveTRPO(self.name, env, **common, **ours)
        self.stock = TRPO(self.name, env, **common)
        self.stock._setup_learn(10**9)
        _, self.callback = self.ours._setup_learn(10**9)
        self.callback.on_training_start({}, {})

    def collect(self) -> None:
        """A new rollout for both."""
        ours, stock = self.ours, self.stock
        assert ours.env is not None
        ours.collect_rollouts(ours.env, self.callback, ours.rollout_buffer, ours.n_steps)
        stock.rollout_buffer = copy.deepcopy(ours.rollout_buffer)
        parameters = dict(stock.policy.named_parameters())
        named = dict(ours.policy.named_parameters())
        with th.no_grad():
            for name in ours.actor.names:
                parameters[name].copy_(named[name])

    def batch(self) -> Batch:
        """The rollout as ours learns from it."""
        rollout = self.ours.recorder._rollout
        assert rollout is not None
        return self.ours._make_batch([self.ours._newest(rollout, self.ours._snapshot_normalizer())])

    def train(self, stock_first: bool) -> tuple[Times, Times] | None:
        """
        Both update.

        :param stock_first: who begins
        :return: times of ours and of stock; None where ours took no step
        """
        if stock_first:
            theirs = self._train_stock()
            times = self._train_ours()
        else:
            times = self._train_ours()
            theirs = self._train_stock()
        return None if times is None else (times, theirs)

    def _train_ours(self) -> Times | None:
        marks: dict[str, list[tuple[float, float]]] = {}
        spied = [spy(self.ours, name, marks, self.clock) for name in ("_centred", "_take_step", "_fit_critic")]
        with spied[0], spied[1], spied[2]:
            start = self.clock()
            self.ours.train()
            end = self.clock()
        if "_fit_critic" not in marks:
            return None
        (centred_at,), (step,), (fit,) = marks["_centred"], marks["_take_step"], marks["_fit_critic"]
        return Times(step[0] - centred_at[0], fit[1] - fit[0], end - start)

    def _train_stock(self) -> Times:
        marks: dict[str, list[tuple[float, float]]] = {}
        with spy(self.stock.rollout_buffer, "get", marks, self.clock):
            start = self.clock()
            self.stock.train()
            end = self.clock()
        asked = [begin for begin, _ in marks["get"]]
        return Times(asked[1] - asked[0], end - asked[1], end - start)


@contextmanager
def spy(owner: Any, name: str, marks: dict[str, list[tuple[float, float]]], clock: Clock) -> Iterator[None]:
    """
    Note when a method is called and when it returns.

    :param owner: an object
    :param name: of its method
    :param marks: where it is noted, by name
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


# --- the Fisher-vector product ---------------------------------------------------------------------------------------


class StockModel(NamedTuple):
    """
    What stock TRPO computes from a batch, by its own functions.

    :param gradient: of its surrogate
    :param product: its damped Fisher-vector product, per action dimension
    """

    gradient: th.Tensor
    product: Callable[[th.Tensor], th.Tensor]


def stock_model(stock: TRPO, batch: Batch) -> StockModel:
    """
    :param stock: stock TRPO
    :param batch: the data
    :return: its gradient and its product
    """
    with th.no_grad():
        old = copy.copy(stock.policy.get_distribution(batch.observations))
    distribution = stock.policy.get_distribution(batch.observations)
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    objective = (advantages * th.exp(distribution.log_prob(batch.actions) - batch.log_probs)).mean()
    divergence = kl_divergence(distribution, old).mean()
    parameters, gradient, grad_kl, _ = stock._compute_actor_grad(divergence, objective)
    return StockModel(gradient, partial(stock.hessian_vector_product, parameters, grad_kl))


def timed(clock: Clock, function: Callable[[], Any]) -> float:
    """
    :param clock: the clock
    :param function: what to time
    :return: milliseconds
    """
    start = clock()
    function()
    return 1e3 * (clock() - start)


def product_pairs(duel: Duel, n_products: int) -> Pairs:
    """
    :param duel: with a rollout collected
    :param n_products: how many
    :return: milliseconds of one exact Fisher-vector product
    """
    batch = centred(duel.batch(), scale=False)
    ours = Surrogate(duel.ours.policy, duel.ours.actor, batch, duel.ours.cg_damping)
    stock = stock_model(duel.stock, batch)
    v = th.randn_like(ours.gradient)
    pairs = Pairs([], [])
    for index in range(-2, n_products):
        mine = timed(duel.clock, partial(ours.fisher_product, v))
        theirs = timed(duel.clock, partial(stock.product, v))
        if index >= 0:  # the first ones pay for memory
            pairs.add(mine, theirs)
    return pairs


# --- updates of a real run -------------------------------------------------------------------------------------------


def at_radius(surrogate: Surrogate, direction: th.Tensor, radius: float) -> float:
    """
    :param surrogate: of held-out data
    :param direction: a direction
    :param radius: joint KL, nats
    :return: gain of the surrogate where the direction leaves the radius
    """
    scale = math.sqrt(2.0 * radius / max(float(direction.dot(surrogate.fisher_product(direction))), 1e-30))
    for _ in range(6):  # KL grows with the square of the step, nearly
        scale *= math.sqrt(radius / max(surrogate.at(surrogate.origin + scale * direction).kl, 1e-30))
    return surrogate.at(surrogate.origin + scale * direction).gain


def held_out_gains(duel: Duel) -> tuple[float, float]:
    """
    Directions from the first half of the rollout, judged on the second.

    :param duel: with a rollout collected
    :return: gain of ours and of stock at the same joint KL
    """
    ours, batch = duel.ours, duel.batch()
    fitted, fresh = (centred(batch.select(index), scale=False) for index in th.arange(batch.n_samples).chunk(2))
    judge = Surrogate(ours.policy, ours.actor, fresh, damping=0.0)
    surrogate = ours._surrogate(fitted)
    mine = ours._solve(surrogate, surrogate.gradient).x
    stock = stock_model(duel.stock, fitted)
    theirs = conjugate_gradient_solver(stock.product, stock.gradient, max_iter=duel.stock.cg_max_steps)
    return at_radius(judge, mine, STOCK_RADIUS), at_radius(judge, theirs, STOCK_RADIUS)


@th.no_grad()
def value_loss(model: OnPolicyAlgorithm, batch: Batch) -> float:
    """
    :param model: whose critic is asked
    :param batch: data that it was not fitted to
    :return: mean squared error
    """
    values = ValueHead(model.policy).at({}, batch.observations)
    return float(th.nn.functional.mse_loss(values, batch.returns))


class RealRun(NamedTuple):
    """
    What the updates of a run gave.

    :param times: milliseconds by part of an update
    :param gains: held-out gain of the surrogate at the same joint KL
    :param losses: of the critics on the returns of the next rollout
    """

    times: dict[str, Pairs]
    gains: Pairs
    losses: Pairs


def real_run(duel: Duel, n_updates: int, judged: bool) -> RealRun:
    """
    :param duel: at its start
    :param n_updates: how many updates
    :param judged: whether gains and losses are wanted too
    :return: what they gave, without the first two updates
    """
    run = RealRun({part: Pairs([], []) for part in UPDATE_PARTS}, Pairs([], []), Pairs([], []))
    for update in range(n_updates):
        duel.collect()
        if judged and update > 1:
            batch = duel.batch()
            run.losses.add(value_loss(duel.ours, batch), value_loss(duel.stock, batch))
            run.gains.add(*held_out_gains(duel))
        times = duel.train(stock_first=update % 2 == 1)
        if times is not None and update > 1:
            for part in UPDATE_PARTS:
                run.times[part].add(1e3 * getattr(times[0], part), 1e3 * getattr(times[1], part))
    return run


def gain_row(gains: Pairs, setting: str) -> Row:
    """
    :param gains: held-out gains
    :param setting: the network
    :return: means and their paired difference with its standard error in place of medians and quartiles
    """
    ours, peer = np.array(gains.ours), np.array(gains.peer)
    difference = ours - peer

    def spread(values: Array) -> tuple[float, float, float]:
        mean, stderr = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
        return mean, mean - stderr, mean + stderr

    middle, low, high = spread(difference)
    reached = "yes" if middle + 2.0 * (high - middle) >= 0.0 else "no"
    return Row(
        "update",
        "held-out gain: mean ± stderr, ratio is the paired difference",
        setting,
        "reward",
        "TRPO",
        len(ours),
        *spread(ours),
        *spread(peer),
        middle,
        low,
        high,
        "not below 0 by 2 stderr",
        reached,
    )


def update_rows(plan: Plan, width: int, device: str) -> list[Row]:
    """
    :param plan: how much
    :param width: of the hidden layers; 0 for a CNN on random images
    :param device: where the networks are
    :return: all that is asked about one update
    """
    name, goal = network_name(width), {64: "<= 0.5", 256: "<= 0.65"}.get(width, "")
    is_task = width > 0

    def duel(**ours: Any) -> Duel:
        env, n_steps = (task(HOPPER), plan.n_steps) if is_task else random_env(plan.n_steps, width)
        return Duel(env, width, n_steps, device, **ours)

    once = duel()
    once.collect()
    rows = [product_pairs(once, plan.n_products).row("update", "Fisher-vector product, exact", name, "ms", goal)]
    run = real_run(duel(), plan.n_updates, judged=is_task)
    for part, bound in (("policy", "<= 0.2"), ("critic", "<= 0.4"), ("train", "<= 0.33")):
        rows.append(run.times[part].row("update", UPDATE_PARTS[part], name, "ms", bound))
    reused = real_run(duel(n_reused_rollouts=4), max(plan.n_updates // 4, 5), judged=False)
    rows.append(reused.times["train"].row("update", "train(), 4 reused rollouts", name, "ms", "<= 1.0"))
    if is_task:
        rows.insert(2, gain_row(run.gains, name))
        rows.insert(4, run.losses.row("update", "critic's loss on the next rollout", name, "reward²", "<= 1.0"))
    return rows


# --- learn() ---------------------------------------------------------------------------------------------------------


class Iterations(BaseCallback):
    """
    Notes when each iteration of ``learn`` begins.

    :param clock: the clock
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.starts: list[float] = []

    def _on_rollout_start(self) -> None:
        self.starts.append(self.clock())

    def _on_step(self) -> bool:
        return True


def iterations(model: BaseAlgorithm, n_steps: int, clock: Clock) -> list[float]:
    """
    :param model: a model
    :param n_steps: of an iteration
    :param clock: the clock
    :return: samples per second of the iterations of one ``learn``, without its first
    """
    callback = Iterations(clock)
    model.learn(5 * n_steps, callback, reset_num_timesteps=False)
    return [n_steps / seconds for seconds in np.diff(callback.starts)[1:]]


def learn_rows(plan: Plan, device: str) -> list[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: samples per second beside stock TRPO and stock PPO
    """
    rows, clock = [], clock_of(device)
    for name in (HOPPER, CARTPOLE):
        classes = (AdaptiveTRPO, TRPO, PPO)
        models = [kind("MlpPolicy", name, n_steps=plan.n_steps, seed=0, device=device) for kind in classes]
        speeds: list[list[float]] = [[], [], []]
        for _ in range(plan.n_rounds):
            for speed, model in zip(speeds, models, strict=True):
                speed += iterations(model, plan.n_steps, clock)
        for speed, peer in zip(speeds[1:], ("TRPO", "PPO"), strict=True):
            rows.append(Pairs(speeds[0], speed).row("learn", "learn()", name, "samples/s", "> 1.0", peer))
    return rows


# --- memory ----------------------------------------------------------------------------------------------------------


def resident(field: str) -> float:
    """
    :param field: VmRSS for what this process holds, VmHWM for the most it ever held
    :return: MiB
    """
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024.0


def most_held(train: Callable[[], None], device: str) -> float:
    """
    :param train: what to run
    :param device: where its tensors are
    :return: how much more this process, or the GPU, held at most while it ran, MiB
    """
    if device != "cpu":
        th.cuda.reset_peak_memory_stats()
        before = th.cuda.memory_allocated()
        train()
        return (th.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the most it ever held counts from here
    held = resident("VmRSS")
    train()
    return resident("VmHWM") - held


def measure_memory(kind: str, width: int, n_steps: int, device: str, results: Any) -> None:
    """
    In a process of its own: what one ``train()`` needs, the second, as the first makes room for the optimiser.

    :param kind: ours or stock
    :param width: of the hidden layers
    :param n_steps: length of a rollout
    :param device: where the networks are
    :param results: a queue
    """
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    env, steps = (task(HOPPER), n_steps) if width else random_env(n_steps, width)
    duel = Duel(env, width, steps, device)
    for _ in range(2):
        duel.collect()
        model = duel.ours if kind == "ours" else duel.stock
        needed = most_held(model.train, device)
    results.put(needed)


def memory_of(kind: str, width: int, n_steps: int, device: str) -> float:
    """
    :param kind: ours or stock
    :param width: of the hidden layers
    :param n_steps: length of a rollout
    :param device: where the networks are
    :return: peak memory of one ``train()``, MiB
    """
    # Larger blocks go back to the system when freed, so that what is held is what is in use.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure_memory, args=(kind, width, n_steps, device, results))
    process.start()
    process.join()
    return float(results.get(timeout=1.0))


def memory_rows(plan: Plan, device: str) -> list[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: peak memory of ``train()``
    """
    if device == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        print("peak memory: not measured, it takes Linux's /proc")
        return []
    rows = []
    for width in plan.networks:
        pairs = Pairs([], [])
        for _ in range(3):
            pairs.add(*(memory_of(kind, width, plan.n_steps, device) for kind in ("ours", "stock")))
        rows.append(pairs.row("memory", "peak memory of train()", network_name(width), "MiB", "<= 1.0"))
    return rows


# --- growth ----------------------------------------------------------------------------------------------------------


def growth_point(n_samples: int, width: int, action_dim: int, device: str) -> tuple[int, dict[str, Pairs]]:
    """
    :param n_samples: of a batch
    :param width: of the hidden layers
    :param action_dim: dimensions of the action
    :param device: where the networks are
    :return: number of the actor's parameters, and milliseconds by part of an update
    """
    env, n_steps = random_env(n_samples, width, action_dim)
    duel = Duel(env, width, n_steps, device)
    duel.collect()
    pairs = {"product": product_pairs(duel, 3)}
    started, update = time.perf_counter(), 0
    run = {part: Pairs([], []) for part in UPDATE_PARTS}
    # As many as fit a few seconds; the first one pays for memory where a second can be afforded.
    while update < 2 or (update < 8 and time.perf_counter() - started < 4.0):
        duel.collect()
        times = duel.train(stock_first=update % 2 == 1)
        update += 1
        if times is not None:
            for part in UPDATE_PARTS:
                run[part].add(1e3 * getattr(times[0], part), 1e3 * getattr(times[1], part))
        if time.perf_counter() - started > 20.0:
            break
    return sum(duel.ours.actor.sizes), pairs | run


def exponents(sizes: list[int], times: list[float]) -> tuple[float, float, float]:
    """
    :param sizes: at which sizes
    :param times: how long it took
    :return: slope of the line through all points on logarithmic axes; the least and the largest between neighbours
    """
    log_sizes, log_times = np.log(sizes), np.log(times)
    slope = float(np.polyfit(log_sizes, log_times, 1)[0])
    local = np.diff(log_times) / np.diff(log_sizes)
    return slope, float(local.min()), float(local.max())


def growth_rows(plan: Plan, device: str) -> list[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: tables of growth, each with its exponents
    """
    axes = {
        "samples": [(n, 64, 6) for n in plan.samples],
        "parameters": [(min(GROWTH_SAMPLES, plan.samples[-1]), width, 6) for width in plan.widths],
        "action dimensions": [(min(GROWTH_SAMPLES, plan.samples[-1]), 64, n) for n in plan.action_dims],
    }
    rows: list[Row] = []
    for axis, points in axes.items():
        sizes, medians = [], {part: ([], []) for part in ("product", *UPDATE_PARTS)}  # type: ignore[var-annotated]
        for n_samples, width, action_dim in points:
            n_parameters, pairs = growth_point(n_samples, width, action_dim, device)
            sizes.append({"samples": n_samples, "parameters": n_parameters}.get(axis, action_dim))
            for part, measured in pairs.items():
                what = UPDATE_PARTS.get(part, "Fisher-vector product, exact")
                rows.append(measured.row(f"growth in {axis}", what, str(sizes[-1]), "ms"))
                medians[part][0].append(rows[-1].ours)
                medians[part][1].append(rows[-1].peer)
        for part, (ours, peer) in medians.items():
            what = UPDATE_PARTS.get(part, "Fisher-vector product, exact")
            figures = (*exponents(sizes, ours), *exponents(sizes, peer), math.nan, math.nan, math.nan)
            rows.append(Row(f"growth in {axis}", what, "exponent", "", "TRPO", len(sizes), *figures, "", ""))
    return rows


# --- report ----------------------------------------------------------------------------------------------------------


def measured(plan: Plan, device: str) -> Iterator[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: all rows, as they are done
    """
    for width in plan.networks:
        yield from update_rows(plan, width, device)
    yield from learn_rows(plan, device)
    yield from memory_rows(plan, device)
    yield from growth_rows(plan, device)


def line(row: Row) -> str:
    """
    :param row: a row
    :return: a line of the table
    """

    def figure(middle: float, low: float, high: float) -> str:
        return "" if math.isnan(middle) else f"{middle:.4g} [{low:.3g}, {high:.3g}]"

    ours, peer, ratio = (figure(*row[at : at + 3]) for at in (6, 9, 12))
    goal = f"{row.goal}: {row.reached}" if row.goal else ""
    what = f"{row.section}: {row.what}" if row.section.startswith("growth") else row.what
    figures = f"{ours:>24} | {row.peer_name:>4} {peer:>24} | {ratio:>24}"
    return f"{what:<62}{row.setting:>12} {row.unit:>10} | {figures} | {goal}"


def write_csv(rows: list[Row], path: Path) -> None:
    """
    :param rows: the table
    :param path: of the file
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([f"{value:.5g}" if isinstance(value, float) else value for value in row] for row in rows)


BLUE, ORANGE, GREEN = (sns.color_palette("colorblind")[index] for index in (0, 1, 2))


def draw_goals(axes: Axes, rows: list[Row]) -> None:
    """
    Ratios with their quartiles, and what they were to reach.

    :param axes: where to draw
    :param rows: those with a ratio as a goal
    """
    for position, row in enumerate(rows):
        reached = row.reached == "yes"
        span = [[row.ratio - row.ratio_q1], [row.ratio_q3 - row.ratio]]
        axes.barh(position, row.ratio, xerr=span, color=GREEN if reached else ORANGE, height=0.6, alpha=0.85)
        axes.plot([float(row.goal.split()[1])] * 2, [position - 0.4, position + 0.4], color="black", linewidth=2)
    labels = [f"{row.what}, {row.setting}" + (f" ({row.peer_name})" if row.section == "learn" else "") for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("ours / peer; black: goal (learn(): above it, all else: below it)")


def draw_growth(axes: Axes, axis: str, rows: list[Row]) -> None:
    """
    Milliseconds by size, ours solid and the peer dashed.

    :param axes: where to draw
    :param axis: what grows
    :param rows: of this axis
    """
    for what, color in (("policy step", BLUE), ("critic fit", ORANGE), ("train()", GREEN)):
        points = [row for row in rows if row.what == what and row.setting != "exponent"]
        sizes = [int(row.setting) for row in points]
        axes.loglog(sizes, [row.ours for row in points], "o-", color=color, label=what)
        axes.loglog(sizes, [row.peer for row in points], "o--", color=color, alpha=0.6, label=f"{what}, stock TRPO")
    axes.set_xlabel(axis)
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3)


def draw(rows: list[Row], path: Path) -> None:
    """
    :param rows: the table
    :param path: of the picture
    """
    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(13, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.2, 1.0])
    draw_goals(above.subplots(), [row for row in rows if re.fullmatch(r"\S+ [\d.]+", row.goal)])
    sections = list(dict.fromkeys(row.section for row in rows if row.section.startswith("growth")))
    grid = below.subplots(1, len(sections))
    for axes, section in zip(grid, sections, strict=True):
        draw_growth(axes, section.removeprefix("growth in "), [row for row in rows if row.section == section])
    grid[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def plan_for(quick: bool, device: str) -> Plan:
    """
    :param quick: whether it is only to be seen that all of it runs
    :param device: where the networks are
    :return: how much
    """
    if quick:
        return QUICK
    return Plan(networks=CUDA_NETWORKS) if device != "cpu" else Plan()


def parsed() -> argparse.Namespace:
    """
    :return: the arguments
    """
    parser = argparse.ArgumentParser(description="How long updates take, beside the stock algorithms.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the networks are")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the CSV and the plot")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parsed()
    if arguments.device == "cuda" and not th.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no GPU here")
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    plan, rows = plan_for(arguments.quick, arguments.device), []
    print("medians [quartiles] of ours | of the peer | of their ratios | goal: reached", flush=True)
    for row in measured(plan, arguments.device):
        rows.append(row)
        print(line(row), flush=True)
    name = "speed" if arguments.device == "cpu" else f"speed-{arguments.device}"
    write_csv(rows, arguments.output / f"{name}.csv")
    draw(rows, arguments.output / f"{name}.png")
    if arguments.device == "cpu":
        seen = "a GPU is at hand" if th.cuda.is_available() else "no GPU is at hand"
        print(f"CUDA, with a CNN and 1024x1024: not run, {seen}; run benchmarks/speed.py --device cuda")


if __name__ == "__main__":
    main()
