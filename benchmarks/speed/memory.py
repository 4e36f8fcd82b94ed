"""Peak memory of ``train()``, in a process of its own."""

import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.speed.duel import Duel, env_for
from benchmarks.speed.plan import Plan, network_name
from benchmarks.speed.rows import Pairs, Row

# Writing 5 to it resets the largest size that this process ever had (Linux, man proc_pid_clear_refs).
CLEAR_REFS = Path("/proc/self/clear_refs")
# Whatever is larger goes back to the system when freed, so that the size of the process is what is in use.
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
N_REPEATS = 3


def resident(field: str) -> float:
    """
    :param field: VmRSS for the size of this process, VmHWM for the largest that it had
    :return: MiB
    """
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024.0


def growth_during(train: Callable[[], None], device: str) -> float:
    """
    :param train: what to run
    :param device: where its tensors are
    :return: by how much this process, or what is in use on the GPU, was larger at most, MiB
    """
    if device != "cpu":
        th.cuda.reset_peak_memory_stats()
        before = th.cuda.memory_allocated()
        train()
        return (th.cuda.max_memory_allocated() - before) / 2**20
    CLEAR_REFS.write_text("5")
    size = resident("VmRSS")
    train()
    return resident("VmHWM") - size


def measure(kind: str, width: int, n_steps: int, device: str, results: Any) -> None:
    """
    What the second ``train()`` needs: the first makes room for the state of the optimiser.

    :param kind: ours or stock
    :param width: of the hidden layers
    :param n_steps: length of a rollout
    :param device: where the networks are
    :param results: a queue
    """
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    duel = Duel(*env_for(width, n_steps), width, device)
    model = duel.ours if kind == "ours" else duel.stock
    for _ in range(2):
        duel.collect()
        needed = growth_during(model.train, device)
    results.put(needed)


def peak(kind: str, width: int, n_steps: int, device: str) -> float:
    """
    :param kind: ours or stock
    :param width: of the hidden layers
    :param n_steps: length of a rollout
    :param device: where the networks are
    :return: peak memory of one ``train()``, MiB
    """
    os.environ.update(ALLOCATION)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(kind, width, n_steps, device, results))
    process.start()
    needed = float(results.get(timeout=600.0))
    process.join()
    return needed


def memory_rows(plan: Plan, device: str) -> Iterator[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: peak memory of ``train()``
    """
    if device == "cpu" and not os.access(CLEAR_REFS, os.W_OK):
        print("peak memory: not measured, that takes Linux")
        return
    for width in plan.networks:
        pairs = Pairs()
        for _ in range(N_REPEATS):
            pairs.add(*(peak(kind, width, plan.n_steps, device) for kind in ("ours", "stock")))
        yield pairs.row("memory", "peak memory of train()", network_name(width), "MiB", "<= 1.0")
