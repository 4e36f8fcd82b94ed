"""
The table of ``from_stock.md``: what our constructors take otherwise than stock TRPO and PPO, read off the signatures.

``python -m docs.differences`` writes it into the page. A test fails when the page is not what this would write.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from sb3_contrib import TRPO
from stable_baselines3 import PPO

import sb3_trustregion

PAGE = Path(__file__).with_name("from_stock.md")
START, END = "<!-- differences: begin -->\n", "<!-- differences: end -->\n"
# Of those that have no note the first sentence of the docstring is taken.
NOTES = {
    "learning_rate": "of the critic in the TRPO family; four times stock's for mini-batches four times as large",
    "batch_size": "of the critic's fit in the TRPO family: about the same loss in a third of the time",
    "target_kl": (
        "a step's bound in TRPO, where the radius starts in AdaptiveTRPO, anew when it is changed (by a "
        "callback: it is the next step's); PPO stops its epochs by it; "
        "for PenaltyPPO the KL that an update is to have"
    ),
    "clip_range": "for AdaptivePPO where it starts: ε is this times an adapted factor",
    "normalize_advantage": "TRPO scales to unit variance; AdaptiveTRPO only centres: ρ is in units of the reward",
    "radius_bounds": "nats per action dimension; for AdaptivePPO of the factor on ε",
    "radius_rule": "`noise_aware`, `textbook`, `fixed`, or a function of your own",
    "radius_prior": "where the radius drifts without evidence: nats per action dimension; for AdaptivePPO it is ε",
    "improvement_estimator": "`rollout`, `episodes` or `surrogate`",
    "rollback_z": "a step worse by more than so many standard errors is undone; None: never",
    "fisher_sub_sampling_factor": "the Fisher matrix is over one in so many states, 256 at least",
    "cg_residual_tol": "where conjugate gradient stops, ‖residual‖/‖g‖; stock's stops at ‖residual‖² < 1e-10",
    "actor_step_size": "α of a fixed step",
    "kl_coef": "the *initial* weight C of the KL penalty",
    "kl_tolerance": "how far from `target_kl` the KL may be, as a ratio, before C changes",
    "kl_coef_factor": "by which C grows or shrinks; 1 for a C that stays",
    "judge_class": "a subclass of `common.judge.Judge`, as `rollout_buffer_class` is one of SB3's buffer",
    "judge_kwargs": "further arguments of its constructor",
    "line_search_shrinking_factor": "NPG searches no line",
    "line_search_max_iter": "NPG searches no line",
}
# Arguments of one default and another meaning.
OTHER_MEANING = {"target_kl", "clip_range", "normalize_advantage"}


def algorithms() -> list[type[Any]]:
    """Stock TRPO and what is like it, then stock PPO and what is like it."""
    ours = [getattr(sb3_trustregion, name) for name in sb3_trustregion.ALGORITHMS.values()]
    like_ppo = [algorithm for algorithm in ours if is_like_ppo(algorithm)]
    return [TRPO, *(algorithm for algorithm in ours if algorithm not in like_ppo), PPO, *like_ppo]


def is_like_ppo(algorithm: type[Any]) -> bool:
    """:return: whether its arguments are those of PPO"""
    return "n_epochs" in defaults(algorithm)


def defaults(algorithm: type[Any]) -> dict[str, str]:
    """:return: the default of each argument that has one, as text"""
    parameters = inspect.signature(algorithm).parameters.values()
    return {one.name: cell(one.default) for one in parameters if one.default is not inspect.Parameter.empty}


def cell(value: Any) -> str:
    """:return: a default as the table shows it"""
    return f"`{value!r}`"


def differing() -> list[str]:
    """:return: arguments whose default, presence or meaning is not stock's"""
    names: dict[str, None] = {}
    for algorithm in algorithms():
        stock, ours = defaults(PPO if is_like_ppo(algorithm) else TRPO), defaults(algorithm)
        names |= {name: None for name in {**stock, **ours} if stock.get(name) != ours.get(name)}
    return [*sorted(OTHER_MEANING - names.keys()), *names]


def note(name: str) -> str:
    """:return: what is to be said of an argument"""
    if name in NOTES:
        return NOTES[name]
    texts = [re.search(rf":param {name}:\s*(.*?)(?=\n\s*:|\Z)", one.__doc__ or "", re.DOTALL) for one in algorithms()]
    found = " ".join(next(text[1] for text in texts if text).split())
    return re.split(r"[.;:] ", found)[0].replace("``", "`")


def table() -> str:
    """:return: the table, in Markdown"""
    heads = [algorithm.__name__ for algorithm in algorithms()]
    stock = {TRPO.__name__: "sb3_contrib.TRPO", PPO.__name__: "stable_baselines3.PPO"}
    lines = [
        f"| argument | {' | '.join(f'`{stock.get(head, head)}`' for head in heads)} | |",
        "|---" * (len(heads) + 2) + "|",
    ]
    every = [defaults(algorithm) for algorithm in algorithms()]
    for name in differing():
        cells = " | ".join(one.get(name, "–") for one in every)
        lines.append(f"| `{name}` | {cells} | {note(name)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """
    :param page: text of ``from_stock.md``
    :return: the same with the table of today
    """
    before, rest = page.split(START)
    return before + START + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
