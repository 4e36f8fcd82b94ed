"""How cost grows with the batch, the network and the action: linear is the expectation."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.speed.duel import PARTS, Duel, random_env
from benchmarks.speed.plan import Plan
from benchmarks.speed.rows import Pairs, Row, Spread
from benchmarks.speed.updates import PRODUCT, product_times

N_PRODUCTS = 3
# At each size as many updates as fit.
SECONDS, MOST_UPDATES = 3.0, 8
LABELS = {"product": PRODUCT, **PARTS}


class Size(NamedTuple):
    """
    :param n_samples: of a batch
    :param width: of the hidden layers
    :param action_dim: dimensions of the action
    """

    n_samples: int
    width: int
    action_dim: int


def measured(size: Size, device: str) -> tuple[int, dict[str, Pairs]]:
    """
    :param size: of everything
    :param device: where the networks are
    :return: number of the actor's parameters, and milliseconds by part of an update
    """
    duel = Duel(*random_env(*size), size.width, device)
    duel.collect()
    pairs = {"product": product_times(duel, N_PRODUCTS)} | {part: Pairs() for part in PARTS}
    started = time.perf_counter()
    for update in range(MOST_UPDATES):
        if update > 1 and pairs["train"].ours and time.perf_counter() - started > SECONDS:
            break
        times = duel.train(stock_first=update % 2 == 1)
        if times is not None and update > 0:  # the first one judges nothing and pays for memory
            for part in PARTS:
                pairs[part].add(*(getattr(one, part) for one in times))
        duel.collect()
    return sum(duel.actor().sizes), pairs


def exponents(sizes: list[int], times: list[float]) -> Spread:
    """
    :param sizes: at which sizes
    :param times: how long it took
    :return: slope of the line through all points on logarithmic axes; the least and the largest between neighbours
    """
    log_sizes, log_times = np.log(sizes), np.log(times)
    local = np.diff(log_times) / np.diff(log_sizes)
    return Spread(float(np.polyfit(log_sizes, log_times, 1)[0]), float(local.min()), float(local.max()))


def axis_rows(axis: str, sizes: list[Size], device: str) -> Iterator[Row]:
    """
    :param axis: what grows
    :param sizes: along it
    :param device: where the networks are
    :return: one table of growth, then its exponents
    """
    found: list[int] = []
    by_part: dict[str, list[Row]] = {part: [] for part in LABELS}
    for size in sizes:
        n_parameters, pairs = measured(size, device)
        found.append({"samples": size.n_samples, "parameters": n_parameters}.get(axis, size.action_dim))
        for part, label in LABELS.items():
            row = pairs[part].row(f"growth in {axis}", label, str(found[-1]), "ms")
            by_part[part].append(row)
            yield row
    for part, label in LABELS.items():
        ours = exponents(found, [row.ours.middle for row in by_part[part]])
        peer = exponents(found, [row.peer.middle for row in by_part[part]])
        yield Row(f"growth in {axis}", label, "exponent", "", "TRPO", len(found), ours, peer, None)


def growth_rows(plan: Plan, device: str) -> Iterator[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: tables of growth
    """
    n_samples = min(plan.n_steps, plan.samples[-1])
    yield from axis_rows("samples", [Size(n, 64, 6) for n in plan.samples], device)
    yield from axis_rows("parameters", [Size(n_samples, width, 6) for width in plan.widths], device)
    yield from axis_rows("action dimensions", [Size(n_samples, 64, n) for n in plan.action_dims], device)
