"""What an update takes, and what its short cuts cost: direction and critic judged on data they were not fitted to."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.speed.duel import PARTS, Duel, env_for, timed
from benchmarks.speed.plan import CNN, Plan, network_name
from benchmarks.speed.rows import Pairs, Row, Spread
from sb3_trustregion.core.batch import Batch
from sb3_trustregion.core.functional import ValueHead
from sb3_trustregion.core.surrogate import Surrogate

PRODUCT = "Fisher-vector product, exact"
PRODUCT_GOALS = {64: "<= 0.5", 256: "<= 0.65"}
PART_GOALS = {"policy": "<= 0.2", "critic": "<= 0.4", "train": "<= 0.33"}
# Stock TRPO's default radius is 0.01 nats per action dimension, and Hopper has three.
RADIUS = 0.03


class StockModel(NamedTuple):
    """
    What stock TRPO makes of a batch, by its own functions.

    :param gradient: of its surrogate
    :param product: its damped Fisher-vector product, by double back-propagation of the KL per action dimension
    """

    gradient: th.Tensor
    product: Callable[[th.Tensor], th.Tensor]


def stock_model(stock: TRPO, batch: Batch) -> StockModel:
    """
    :param stock: stock TRPO
    :param batch: the data, advantages centred
    :return: its gradient and its product
    """
    with th.no_grad():
        old = copy.copy(stock.policy.get_distribution(batch.observations))
    distribution = stock.policy.get_distribution(batch.observations)
    ratios = th.exp(distribution.log_prob(batch.actions) - old.log_prob(batch.actions))
    objective = (ratios * batch.advantages / (batch.advantages.std() + 1e-8)).mean()
    divergence = kl_divergence(distribution, old).mean()
    parameters, gradient, grad_kl, _ = stock._compute_actor_grad(divergence, objective)
    return StockModel(gradient, partial(stock.hessian_vector_product, parameters, grad_kl))


def product_times(duel: Duel, n_products: int) -> Pairs:
    """
    :param duel: with a rollout collected
    :param n_products: how many
    :return: milliseconds of one Fisher-vector product over all states
    """
    batch = duel.batch().centred(scale=False)
    ours = Surrogate(duel.ours.policy, duel.actor(), batch, duel.ours.cg_damping)
    stock = stock_model(duel.stock, batch)
    v, pairs = th.randn_like(ours.gradient), Pairs()
    for index in range(-2, n_products):
        mine = timed(duel.clock, partial(ours.fisher_product, v))
        theirs = timed(duel.clock, partial(stock.product, v))
        if index >= 0:  # the first ones pay for memory
            pairs.add(mine, theirs)
    return pairs


def gain_at_radius(judge: Surrogate, direction: th.Tensor) -> float:
    """
    :param judge: the surrogate of held-out data
    :param direction: a direction
    :return: its gain where the direction leaves the radius
    """
    scale = math.sqrt(2.0 * RADIUS / max(float(direction.dot(judge.fisher_product(direction))), 1e-30))
    for _ in range(6):  # KL grows with the square of the step, nearly
        scale *= math.sqrt(RADIUS / max(judge.at(judge.origin + scale * direction).kl, 1e-30))
    return judge.at(judge.origin + scale * direction).gain


def held_out_gains(duel: Duel, fitted: Batch, fresh: Batch) -> tuple[float, float]:
    """
    :param duel: both algorithms, whose policies are the same
    :param fitted: a rollout of theirs, from which the directions are
    :param fresh: another one of theirs, which judges them
    :return: gain of ours and of stock at the same joint KL
    """
    ours, actor, fitted = duel.ours, duel.actor(), fitted.centred(scale=False)
    judge = Surrogate(ours.policy, actor, fresh.centred(scale=False), damping=0.0)
    surrogate = ours._surrogate(fitted, actor)
    mine = ours._solve(surrogate, surrogate.gradient).x
    stock = stock_model(duel.stock, fitted)
    theirs = conjugate_gradient_solver(stock.product, stock.gradient, max_iter=duel.stock.cg_max_steps)
    return gain_at_radius(judge, mine), gain_at_radius(judge, theirs)


@th.no_grad()
def value_loss(model: OnPolicyAlgorithm, batch: Batch) -> float:
    """
    :param model: whose critic is asked
    :param batch: data that it was not fitted to
    :return: mean squared error
    """
    values = ValueHead(model.policy).at({}, batch.observations)
    return float(th.nn.functional.mse_loss(values, batch.returns))


class RealRun:
    """
    Updates of a run.

    :param duel: at its start
    """

    def __init__(self, duel: Duel) -> None:
        self.duel = duel
        self.times = {part: Pairs() for part in PARTS}
        self.gains = Pairs()
        self.losses = Pairs()

    def go(self, n_updates: int, judged: bool) -> None:
        """
        :param n_updates: how many; the first two are not counted
        :param judged: whether directions and critics are judged on held-out data too
        """
        for update in range(n_updates):
            self.duel.collect()
            if judged and update > 1:
                self._judge()
            times = self.duel.train(stock_first=update % 2 == 1)
            if times is not None and update > 1:
                for part, pairs in self.times.items():
                    pairs.add(*(getattr(one, part) for one in times))

    def _judge(self) -> None:
        """Two rollouts of one policy: the second judges directions that are from the first, and is trained on."""
        fitted = self.duel.batch()
        self.duel.collect()
        fresh = self.duel.batch()
        judge = fresh._replace(returns=self.duel.monte_carlo())
        self.losses.add(value_loss(self.duel.ours, judge), value_loss(self.duel.stock, judge))
        self.gains.add(*held_out_gains(self.duel, fitted, fresh))


def gain_row(gains: Pairs, setting: str) -> Row:
    """
    :param gains: held-out gains
    :param setting: the network
    :return: means plus and minus their standard errors, and for a ratio that of the means, by the paired difference
    """
    ours, peer = np.array(gains.ours), np.array(gains.peer)
    middle, low, high = mean_and_stderr(ours - peer)
    reached = "yes" if middle + 2.0 * (high - middle) >= 0.0 else "no"
    ratio = Spread(*(1.0 + difference / peer.mean() for difference in (middle, low, high)))
    spreads = mean_and_stderr(ours), mean_and_stderr(peer), ratio
    what, goal = "held-out gain at the same KL, means ± stderr", "1 within 2 stderr, or above"
    return Row("update", what, setting, "reward", "TRPO", len(ours), *spreads, goal, reached)


def loss_row(losses: Pairs, setting: str) -> Row:
    """
    :param losses: of both critics on data that they were not fitted to
    :param setting: the network
    :return: medians and quartiles, and for a ratio the geometric mean with its standard error
    """
    row = losses.row("update", "critic's loss on the next rollout", setting, "reward²")
    logs = mean_and_stderr(np.log(losses.ours) - np.log(losses.peer))
    reached = "yes" if 2.0 * logs.low - logs.middle <= 0.0 else "no"
    return row._replace(ratio=Spread(*np.exp(logs)), goal="1 within 2 stderr, or below", reached=reached)


def mean_and_stderr(values: Any) -> Spread:
    """
    :param values: independent measurements
    :return: their mean, less and plus its standard error
    """
    mean, stderr = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Spread(mean, mean - stderr, mean + stderr)


def update_rows(plan: Plan, width: int, device: str) -> Iterator[Row]:
    """
    :param plan: how much
    :param width: of the hidden layers
    :param device: where the networks are
    :return: all that is asked about one update
    """
    name, is_task = network_name(width), width != CNN
    once = Duel(*env_for(width, plan.n_steps), width, device)
    once.collect()
    products = product_times(once, plan.n_products)
    yield products.row("update", PRODUCT, name, "ms", PRODUCT_GOALS.get(width, ""))
    run = RealRun(Duel(*env_for(width, plan.n_steps), width, device))
    run.go(plan.n_updates, judged=is_task)
    for part, goal in PART_GOALS.items():
        yield run.times[part].row("update", PARTS[part], name, "ms", goal)
    if is_task:
        yield gain_row(run.gains, name)
        yield loss_row(run.losses, name)
