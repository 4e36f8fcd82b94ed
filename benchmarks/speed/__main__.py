"""
``python -m benchmarks.speed``: measure, print, write ``speed.csv``, ``speed.md``, ``speed.png``.

Every figure is a ratio within one run, in which ours and the peer take turns; updates are of the same batch. On a CPU
the clock is that of this process alone, so that others on the machine disturb less; on CUDA it is the wall clock, read
after synchronising. PyTorch has one thread.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch as th

from benchmarks.speed.growth import growth_rows
from benchmarks.speed.learning import learn_rows
from benchmarks.speed.memory import memory_rows
from benchmarks.speed.plan import CUDA, QUICK, Plan
from benchmarks.speed.report import HEADER, draw, line, write_csv, write_markdown
from benchmarks.speed.rows import Row
from benchmarks.speed.updates import update_rows

SECTIONS = ("update", "learn", "memory", "growth")


def measured(plan: Plan, device: str, sections: list[str]) -> Iterator[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :param sections: which questions
    :return: all rows, as they are done
    """
    if "update" in sections:
        for width in plan.networks:
            yield from update_rows(plan, width, device)
    for name, rows in (("learn", learn_rows), ("memory", memory_rows), ("growth", growth_rows)):
        if name in sections:
            yield from rows(plan, device)


def parsed() -> argparse.Namespace:
    """
    :return: the arguments
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="How long updates take.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the networks are")
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=SECTIONS, help="print these, write nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks"), help="folder for the CSV and the plot")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not th.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    return arguments


def main() -> None:
    """Measure, print, write."""
    arguments = parsed()
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    on_cpu = arguments.device == "cpu"
    plan = QUICK if arguments.quick else Plan() if on_cpu else CUDA
    rows = []
    print(HEADER, flush=True)
    for row in measured(plan, arguments.device, arguments.only):
        rows.append(row)
        print(line(row), flush=True)
    if on_cpu:
        print("on a GPU, with a CNN and 1024x1024 too: not run here; run python -m benchmarks.speed --device cuda")
    if set(arguments.only) == set(SECTIONS):
        name = "speed" if on_cpu else "speed-cuda"
        write_csv(rows, arguments.output / f"{name}.csv")
        write_markdown(rows, arguments.output / f"{name}.md")
        draw(rows, arguments.output / f"{name}.png")


if __name__ == "__main__":
    main()
