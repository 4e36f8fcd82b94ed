"""
The best few trials of a search, as a grid that runs them again on fresh seeds beside the `default` entry: trials are
unseeded and seen once, so the best of them was lucky, too.

    make tune ALGO=adaptive_trpo ENV=Pendulum-v1
    python benchmarks/candidates.py adaptive_trpo Pendulum-v1 logs/tuning/adaptive_trpo-Pendulum-v1.log > logs/grid.yml
    python -m sb3_trustregion.benchmark run logs/grid.yml --output logs/candidates
    python -m sb3_trustregion.benchmark report logs/candidates
"""

import argparse

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sb3_trustregion.zoo.samplers import CONVERTERS

SEEDS = [2100, 2101, 2102]


class Plain(yaml.SafeDumper):
    """Values are written out wherever they occur."""

    def ignore_aliases(self, data: object) -> bool:
        """Never refer back to a value."""
        return True


def main() -> None:
    """Print the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algo")
    parser.add_argument("env")
    parser.add_argument("storage", help="the journal that `make tune` writes")
    parser.add_argument("--best", type=int, default=3, help="how many trials")
    parser.add_argument("--n-timesteps", type=int, default=100_000)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(arguments.storage))
    study = optuna.load_study(study_name=f"{arguments.algo}-{arguments.env}", storage=storage)
    trials = sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda trial: trial.value, reverse=True)
    grid = {
        "seeds": SEEDS,
        "environment": {"n_envs": 1, "normalize": True},
        "tasks": {arguments.env: arguments.n_timesteps},
        "variants": [
            arguments.algo,
            *(
                {
                    f"trial-{trial.number}": {
                        "base": f"{arguments.algo}-tuned",
                        "label": f"trial {trial.number} ({trial.value:.4g})",
                        "hyperparameters": CONVERTERS[arguments.algo](trial.params),
                    }
                }
                for trial in trials[: arguments.best]
            ),
        ],
    }
    print(yaml.dump(grid, Dumper=Plain, sort_keys=False), end="")


if __name__ == "__main__":
    main()
