"""What is compared: an algorithm with one entry of its hyperparameter file and a few values of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sb3_trustregion import ALGORITHMS

STOCK = "stock"
OURS = "ours"
TUNED = "tuned"
ABLATION = "ablation"
SENSITIVITY = "sensitivity"

# The judges that take feedback away, by the end of a variant's name.
JUDGES = "sb3_trustregion.benchmark.run.judges"
# What a radius starts from, ours and stock's alike: the argument, what it is, and by which factors it may be wrong.
STOCK_KL = "target_kl", 0.01, {"radius_div20": 1 / 20, "radius_x20": 20.0}
OUR_KL = "target_kl", 0.005, STOCK_KL[2]
CLIP_RANGE = "clip_range", 0.2, {"clip_div10": 1 / 10, "clip_x5": 5.0}
INITIAL_RADII = {
    "trpo-default": STOCK_KL,
    **dict.fromkeys(("adaptive_trpo", "adaptive_trpo-fixed"), OUR_KL),
    **dict.fromkeys(("ppo-default", "adaptive_ppo"), CLIP_RANGE),
}


@dataclass(frozen=True)
class Variant:
    """One competitor."""

    name: str  # as in ``--variants`` and in the names of folders
    label: str  # as in plots and tables
    algorithm: str  # name in RL Zoo's ``ALGOS``
    config: str  # the hyperparameter file: RL Zoo's for ``ppo`` and ``trpo``, ours for the others
    per_task: bool = False  # whether the entry is the task's own, or ``default``
    hyperparameters: dict[str, Any] = field(default_factory=dict)  # beyond the entry; a judge_class by its dotted path
    role: str = OURS
    parent: str = ""  # name of the variant from which this one differs in one thing
    radius_factor: float = 1.0  # initial radius over the parent's
    replays: str = ""  # name of the variant whose record, with another seed, takes the place of feedback


def _main() -> Iterator[Variant]:
    for name in ("ppo", "trpo"):
        yield Variant(f"{name}-zoo", f"{name.upper()}, Zoo-tuned", name, name, per_task=True, role=STOCK)
        yield Variant(f"{name}-default", f"{name.upper()}, defaults", name, name, role=STOCK)
    yield from (Variant(name, label, name, name) for name, label in ALGORITHMS.items())


def _tuned(base: Variant) -> Variant:
    return replace(base, name=f"{base.name}-tuned", label=f"{base.label}, per task", per_task=True, role=TUNED)


def _ablations(base: Variant) -> Iterator[Variant]:
    def changed(name: str, label: str, replays: str = "", **changes: Any) -> Variant:
        base_of = replace(base, role=ABLATION, parent=base.name, replays=replays)
        return replace(base_of, name=f"{base.name}-{name}", label=f"{base.label}, {label}", hyperparameters=changes)

    yield changed("fixed", "fixed radius", radius_rule="fixed")
    yield changed("always_accept", "always accept", rollback_z=None)
    yield changed("actual_zero", "actual = 0", judge_class=f"{JUDGES}.ActualZero")
    yield changed("actual_shuffled", "actual shuffled", base.name, judge_class=f"{JUDGES}.ActualShuffled")
    # Open loop: the schedule alone, so no roll-back either.
    schedule = {"judge_class": f"{JUDGES}.ReplayedSchedule", "rollback_z": None}
    yield changed("replayed", "replayed schedule", base.name, **schedule)


def _baselines() -> Iterator[Variant]:
    """Stock TRPO with those of our defaults that it takes; stock PPO with other ways to hold its steps in bounds."""
    settings = {"n_envs": 8, "n_steps": 128, "target_kl": OUR_KL[1], "policy_kwargs": "dict(log_std_init=-0.5)"}
    yield Variant("trpo-our_settings", "TRPO, our settings", "trpo", "trpo", False, settings, ABLATION, "adaptive_trpo")
    shared: dict[str, Any] = {"config": "ppo", "role": ABLATION, "parent": "adaptive_ppo"}
    # 1.5 x 0.01 nats is where PPO of "Spinning Up" stops its epochs too.
    yield Variant("ppo-target_kl", "PPO, target_kl = 0.01", "ppo", hyperparameters={"target_kl": 0.01}, **shared)
    yield Variant("ppo-decaying_clip", "PPO, decaying clip", "ppo", hyperparameters={"clip_range": "lin_0.2"}, **shared)
    yield Variant("ppo-kl_adaptive", "PPO, KL-adaptive step", "ppo_kl_adaptive", **shared)


def _sensitivity(base: Variant) -> Iterator[Variant]:
    argument, default, factors = INITIAL_RADII[base.name]
    for suffix, factor in factors.items():
        yield replace(
            base,
            name=f"{base.name.removesuffix('-default')}-{suffix}",
            label=f"{base.label}, initial radius {f'/ {1 / factor:.0f}' if factor < 1 else f'× {factor:.0f}'}",
            hyperparameters=base.hyperparameters | {argument: default * factor},
            role=SENSITIVITY,
            parent=base.name,
            radius_factor=factor,
        )


def _all() -> dict[str, Variant]:
    main = list(_main())
    ours = [variant for variant in main if variant.role == OURS]
    variants = [*main, *map(_tuned, ours), *_baselines()]
    for base in ours:
        if base.algorithm.startswith("adaptive_"):
            variants += _ablations(base)
    for base in list(variants):
        if base.name in INITIAL_RADII:
            variants += _sensitivity(base)
    return {variant.name: variant for variant in variants}


VARIANTS: dict[str, Variant] = _all()
MAIN = tuple(variant.name for variant in VARIANTS.values() if variant.role in (STOCK, OURS))


def find_variant(name: str) -> Variant:
    """The variant of a name; it is an error where there is none."""
    if name not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]
