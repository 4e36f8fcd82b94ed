"""One line of the table: medians and quartiles of ours, of the peer, and of their ratios."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """
    :param middle: the median
    :param low: the first quartile
    :param high: the third quartile
    """

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """
        :param values: what was measured
        :return: its quartiles
        """
        low, middle, high = np.percentile(list(values), [25.0, 50.0, 75.0])
        return cls(float(middle), float(low), float(high))


class Row(NamedTuple):
    """
    One line of the table.

    :param section: which question it answers
    :param what: what was measured
    :param setting: of which network or task, or at which size
    :param unit: of ``ours`` and ``peer``
    :param peer_name: who the peer is
    :param n: number of pairs
    :param ours: figures of ours
    :param peer: figures of the peer
    :param ratio: ours / peer, pair by pair
    :param goal: what the ratio is to reach; empty where nothing was promised
    :param reached: yes or no
    """

    section: str
    what: str
    setting: str
    unit: str
    peer_name: str
    n: int
    ours: Spread
    peer: Spread
    ratio: Spread | None
    goal: str = ""
    reached: str = ""

    def record(self) -> dict[str, str]:
        """Fields of a line of a CSV file."""
        record: dict[str, str] = {}
        for name, value in self._asdict().items():
            if name in ("ours", "peer", "ratio"):
                figures = ["" if value is None else f"{figure:.5g}" for figure in value or (None,) * 3]
                record |= dict(zip((name, f"{name}_low", f"{name}_high"), figures, strict=True))
            else:
                record[name] = str(value)
        return record


class Pairs:
    """Measurements in turns, ours and the peer's."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.peer: list[float] = []

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
        ratio = Spread.of(mine / other for mine, other in zip(self.ours, self.peer, strict=True))
        spreads = Spread.of(self.ours), Spread.of(self.peer), ratio
        return Row(section, what, setting, unit, peer, len(self.ours), *spreads, goal, verdict(ratio.middle, goal))


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
