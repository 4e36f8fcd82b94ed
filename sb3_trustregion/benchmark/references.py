"""What a score of 0 and of 1 means on each task, and how the random policy is measured."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from sb3_trustregion.benchmark.tasks import make

COMMITTED = Path(__file__).with_name("references.yml")
N_EPISODES = 100
SEED = 0


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


def measure_random(task: str, n_episodes: int = N_EPISODES, seed: int = SEED) -> tuple[float, float]:
    """
    :param task: id of an environment
    :param n_episodes: how many
    :param seed: of environment and actions
    :return: mean return of uniformly random actions, and its standard error
    """
    env = make(task)
    env.action_space.seed(seed)
    returns = []
    for episode in range(n_episodes):
        env.reset(seed=seed if episode == 0 else None)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns)), float(np.std(returns, ddof=1) / np.sqrt(n_episodes))
