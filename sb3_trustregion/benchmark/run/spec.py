"""The specification of a run: all that decides what it gives."""

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
    """What is to be run."""

    variant: Variant
    task: str
    seed: int
    n_timesteps: int  # wanted length
    hyperparameters: dict[str, Any]  # as in one of RL Zoo's files
    versions: dict[str, str]  # of the packages that compute
    modules: dict[str, str] = field(default_factory=dict)  # hashes of those of ours that take part
    backend: str = GYMNASIUM  # whose environments
    gym_packages: list[str] = field(default_factory=list)  # to import so that the task is known
    replayed_seed: int | None = None  # whose record takes the place of feedback
    recording: list[list[float]] = field(default_factory=list)  # that record
    protocol: int = PROTOCOL  # of measurement

    @property
    def key(self) -> Key:
        """Task, variant and seed: what names a run within a folder of results."""
        return self.task, self.variant.name, self.seed

    @property
    def record(self) -> dict[str, Any]:
        """What is kept of the specification with any result, as it comes back from a file."""
        record: dict[str, Any] = json.loads(self.to_json())
        del record["recording"]
        return record

    def to_json(self) -> str:
        """The specification as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """The specification of which ``to_json`` gave the text."""
        values = json.loads(text)
        return cls(**{**values, "variant": Variant(**values["variant"])})


def title(key: Key) -> str:
    """A run's name for people."""
    return f"{key[1]} on {key[0]}, seed {key[2]}"
