"""What a score of 0 and of 1 means on each task."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

COMMITTED = Path(__file__).with_name("references.yml")


class Reference(NamedTuple):
    """
    Returns that normalise the scores of a task.

    :param random: mean return of uniformly random actions: score 0
    :param reference: a published mean return: score 1
    """

    random: float
    reference: float

    def normalize(self, returns: Any) -> Any:
        """
        :param returns: a number or an array
        :return: scores
        """
        return (returns - self.random) / (self.reference - self.random)


def read_references(path: Path = COMMITTED) -> dict[str, Reference]:
    """
    :param path: a file as the committed one
    :return: references by task
    :raises ValueError: where the file is malformed
    """
    try:
        tasks = yaml.safe_load(path.read_text("utf-8"))["tasks"]
        names = Reference._fields
        references = {task: Reference(*(float(entry[name]) for name in names)) for task, entry in tasks.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"references must be a file with random and reference per task, got {str(path)!r}") from error
    for task, (random, reference) in references.items():
        if not reference > random:
            raise ValueError(f"reference must be > random, got {reference} and {random} for {task}")
    return references
