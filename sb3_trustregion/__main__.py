"""``python -m sb3_trustregion``: what is there, and what to try first."""

import importlib
from pathlib import Path

import sb3_trustregion
from sb3_trustregion.zoo import doctor, registration

_ROOT = Path(__file__).parents[1]
_TRY = """
try
  python -m rl_zoo3.train --algo adaptive_trpo --env CartPole-v1    (or: python -m sb3_trustregion.zoo train ...)
  python -m rl_zoo3.enjoy --algo adaptive_trpo --env CartPole-v1 --folder logs --no-render
  python -m sb3_trustregion.zoo doctor                              what RL Zoo knows, and why not
  python -m sb3_trustregion.benchmark --help                        comparison with stock PPO and TRPO"""


def main() -> None:
    """Print the overview."""
    print(f"sb3_trustregion {sb3_trustregion.__version__}\n\nalgorithms")
    for name, class_name in sb3_trustregion.ALGORITHMS.items():
        print(f"  {class_name:<14}{name:<15}{importlib.import_module(f'sb3_trustregion.{name}').__doc__}")
    print("\nRL Zoo", *doctor.check_hook(), *doctor.check_zoo(), sep="\n")
    print(f"\nhyperparameters  {registration.hyperparameters_path('<algorithm>')}")
    readme = _ROOT / "README.md"
    place = f"{readme}, {_ROOT / 'docs'}" if readme.is_file() else "README.md and docs/ of the source tree"
    print(f"documentation    {place}, help(sb3_trustregion.AdaptiveTRPO)")
    print(_TRY)


if __name__ == "__main__":
    main()
