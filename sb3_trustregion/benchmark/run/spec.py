"""One run: all that decides what it gives."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sb3_trustregion.benchmark.mixtures import GYMNASIUM
from sb3_trustregion.benchmark.results import Key
from sb3_trustregion.benchmark.variants import Variant

# Changes when runs are measured otherwise than before.
PROTOCOL = 1


@dataclass(frozen=True)
class RunSpec:
    """
    What is to be run.

    :param variant: the competitor
    :param task: id of the environment
    :param seed: of everything
    :param n_timesteps: wanted length
    :param hyperparameters: as in one of RL Zoo's files
    :param versions: of the packages that compute
    :param modules: hash of each module of ours that takes part
    :param backend: whose environments: Gymnasium's, or EnvPool's
    :param gym_packages: modules to import so that the task is known
    :param replayed_seed: whose record takes the place of feedback
    :param recording: that record: as in :class:`~sb3_trustregion.benchmark.run.judges.Recorded`
    :param protocol: of measurement
    """

    variant: Variant
    task: str
    seed: int
    n_timesteps: int
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    modules: dict[str, str] = field(default_factory=dict)
    backend: str = GYMNASIUM
    gym_packages: list[str] = field(default_factory=list)
    replayed_seed: int | None = None
    recording: list[list[float]] = field(default_factory=list)
    protocol: int = PROTOCOL

    @property
    def key(self) -> Key:
        """Task, variant and seed: what names a run within a folder of results."""
        return self.task, self.variant.name, self.seed

    @property
    def record(self) -> dict[str, Any]:
        """What is kept of it in any case, as it comes back from a file."""
        record: dict[str, Any] = json.loads(self.to_json())
        del record["recording"]
        return record

    def to_json(self) -> str:
        """:return: the same as text"""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """:return: the run of which ``to_json`` gave the text"""
        values = json.loads(text)
        return cls(**{**values, "variant": Variant(**values["variant"])})


def title(key: Key) -> str:
    """:return: a run's name for people"""
    return f"{key[1]} on {key[0]}, seed {key[2]}"
