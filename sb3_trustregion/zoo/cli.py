"""``python -m sb3_trustregion.zoo``: RL Zoo's scripts with our algorithms registered, no start-up hook needed."""

import argparse
import importlib
import runpy
import sys

from sb3_trustregion import ALGORITHMS
from sb3_trustregion.zoo import doctor, register

# Scripts that are a function, and the module that has it.
_PLOTS = ("plot_train", "plot_from_file", "all_plots")
_FUNCTIONS = {"train": "rl_zoo3.train", "enjoy": "rl_zoo3.enjoy", **dict.fromkeys(_PLOTS, "rl_zoo3.plots")}
# Scripts that are the main block of a module. RL Zoo's ``benchmark`` and ``record_training`` are missing
# on purpose: they start ``python -m rl_zoo3...`` themselves, and only the hook reaches into those.
_MODULES = ("record_video", "push_to_hub", "load_from_hub")


def main(argv: list[str] | None = None) -> int:
    """Run one of RL Zoo's scripts, or the doctor; arguments by default those of the process. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sb3_trustregion.zoo",
        description=f"RL Zoo's scripts, which know {', '.join(ALGORITHMS)} here; "
        "doctor tells what is registered and why not.",
    )
    parser.add_argument("command", choices=[*_FUNCTIONS, *_MODULES, "doctor"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as RL Zoo takes them: COMMAND -h lists them")
    args = parser.parse_args(argv)
    if args.command == "doctor":
        return doctor.main(args.arguments)
    register()
    sys.argv = [args.command, *args.arguments]
    if args.command in _FUNCTIONS:
        getattr(importlib.import_module(_FUNCTIONS[args.command]), args.command)()
    else:
        runpy.run_module(f"rl_zoo3.{args.command}", run_name="__main__", alter_sys=True)
    return 0
