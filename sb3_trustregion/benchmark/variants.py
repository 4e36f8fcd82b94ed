"""What is compared: an algorithm with one entry of its hyperparameter file and a few values of its own."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sb3_trustregion.benchmark.mixtures import ENVIRONMENT, SETTINGS

STOCK = "stock"
OURS = "ours"
TUNED = "tuned"
ABLATION = "ablation"
SENSITIVITY = "sensitivity"

# What RL Zoo takes out of an entry before it makes the model, and arguments of the model that are not a variant's.
OF_THE_ZOO = {"n_timesteps", "callback", *SETTINGS, *ENVIRONMENT}
OF_THE_RUN = {"n_timesteps", "env", "seed", "verbose", "device", "tensorboard_log", "recording", "_init_setup_model"}

# Joint KL in nats around the data. 0.15 and 0.3 were the best of those tried; this lies between.
M8 = {"n_reused_rollouts": 8, "target_kl": 0.2}
RADIUS_FACTORS = {"div20": 1 / 20, "x20": 20.0}


@dataclass(frozen=True)
class Variant:
    """
    One competitor.

    :param name: as in ``--variants`` and in the names of folders
    :param label: as in plots and tables
    :param algorithm: name in RL Zoo's ``ALGOS``, or in :data:`IMPLEMENTATIONS`
    :param config: the hyperparameter file: RL Zoo's for ``ppo`` and ``trpo``, ours for the others
    :param per_task: whether the entry is the task's own, or ``default``
    :param hyperparameters: what is set beyond the entry
    :param role: stock, ours, tuned (ours with the entries of each task), ablation, or sensitivity
    :param parent: name of the variant from which this one differs in one thing
    :param radius_factor: initial radius over the parent's
    :param replays: name of the variant whose record, with another seed, takes the place of feedback
    """

    name: str
    label: str
    algorithm: str
    config: str
    per_task: bool = False
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    role: str = OURS
    parent: str = ""
    radius_factor: float = 1.0
    replays: str = ""

    @property
    def is_stock(self) -> bool:
        """Whether no code of ours takes part."""
        return self.algorithm in ("ppo", "trpo")

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return asdict(self)


# Algorithms that only the benchmark has: where their class is.
IMPLEMENTATIONS = {
    "ppo_kl_adaptive": "sb3_trustregion.benchmark.baselines:KLAdaptivePPO",
    "adaptive_trpo_actual_zero": "sb3_trustregion.benchmark.ablations:ActualZeroTRPO",
    "adaptive_trpo_actual_shuffled": "sb3_trustregion.benchmark.ablations:ActualShuffledTRPO",
    "adaptive_trpo_replayed": "sb3_trustregion.benchmark.ablations:ReplayedTRPO",
    "adaptive_ppo_actual_zero": "sb3_trustregion.benchmark.ablations:ActualZeroPPO",
    "adaptive_ppo_actual_shuffled": "sb3_trustregion.benchmark.ablations:ActualShuffledPPO",
    "adaptive_ppo_replayed": "sb3_trustregion.benchmark.ablations:ReplayedPPO",
}
MODULES = {
    "npg": "sb3_trustregion.npg",
    "adaptive_trpo": "sb3_trustregion.adaptive_trpo",
    "adaptive_ppo": "sb3_trustregion.adaptive_ppo",
} | {name: place.partition(":")[0] for name, place in IMPLEMENTATIONS.items()}


def _stock() -> Iterator[Variant]:
    for name in ("ppo", "trpo"):
        yield Variant(f"{name}-zoo", f"{name.upper()}, Zoo-tuned", name, name, per_task=True, role=STOCK)
        yield Variant(f"{name}-default", f"{name.upper()}, defaults", name, name, role=STOCK)


def _ours() -> Iterator[Variant]:
    yield Variant("npg", "NPG", "npg", "npg")
    yield Variant("adaptive_trpo", "AdaptiveTRPO", "adaptive_trpo", "adaptive_trpo")
    yield Variant("adaptive_trpo-m8", "AdaptiveTRPO, M = 8", "adaptive_trpo", "adaptive_trpo", hyperparameters=M8)
    yield Variant("adaptive_ppo", "AdaptivePPO", "adaptive_ppo", "adaptive_ppo")


def _tuned(ours: list[Variant]) -> Iterator[Variant]:
    for base in ours:
        if not base.hyperparameters:
            label = f"{base.label}, per task"
            yield replace(base, name=f"{base.name}-tuned", label=label, per_task=True, role=TUNED)


def _changed(base: Variant, name: str, label: str, *, algorithm: str = "", **changes: Any) -> Variant:
    return replace(
        base,
        name=f"{base.name}-{name}",
        label=f"{base.label}, {label}",
        algorithm=algorithm or base.algorithm,
        hyperparameters=base.hyperparameters | changes,
        role=ABLATION,
        parent=base.name,
    )


def _ablations(base: Variant) -> Iterator[Variant]:
    yield _changed(base, "fixed", "fixed radius", radius_rule="fixed")
    yield _changed(base, "always_accept", "always accept", rollback_z=None)
    yield _changed(base, "actual_zero", "actual = 0", algorithm=f"{base.algorithm}_actual_zero")
    shuffled = _changed(base, "actual_shuffled", "actual shuffled", algorithm=f"{base.algorithm}_actual_shuffled")
    yield replace(shuffled, replays=base.name)
    # Open loop: the schedule alone, so no roll-back either.
    schedule = f"{base.algorithm}_replayed"
    replayed = _changed(base, "replayed", "replayed schedule", algorithm=schedule, rollback_z=None)
    yield replace(replayed, replays=base.name)


def _ppo_baselines() -> Iterator[Variant]:
    """Other ways to hold PPO's steps in bounds, from its defaults."""
    shared: dict[str, Any] = {"config": "ppo", "role": ABLATION, "parent": "adaptive_ppo"}
    # 1.5 x 0.01 nats is where PPO of "Spinning Up" stops its epochs too.
    stopped = {"target_kl": 0.01}
    yield Variant("ppo-target_kl", "PPO, target_kl = 0.01", "ppo", hyperparameters=stopped, **shared)
    decaying = {"clip_range": "lin_0.2"}
    yield Variant("ppo-decaying_clip", "PPO, decaying clip", "ppo", hyperparameters=decaying, **shared)
    yield Variant("ppo-kl_adaptive", "PPO, KL-adaptive step", "ppo_kl_adaptive", **shared)


def _sensitivity(base: Variant, radius: float) -> Iterator[Variant]:
    prefix = base.name.removesuffix("-default")
    for suffix, factor in RADIUS_FACTORS.items():
        yield replace(
            base,
            name=f"{prefix}-radius_{suffix}",
            label=f"{base.label}, initial radius {'/' if factor < 1 else '×'} 20",
            hyperparameters=base.hyperparameters | {"target_kl": radius * factor},
            role=SENSITIVITY,
            parent=base.name,
            radius_factor=factor,
        )


def _all() -> dict[str, Variant]:
    variants = {variant.name: variant for variant in [*_stock(), *_ours()]}
    ours = list(_ours())
    adaptive = [variant for variant in ours if variant.algorithm != "npg"]
    extra = [*_tuned(ours), *_ppo_baselines()]
    for base in adaptive:
        extra += _ablations(base)
    variants |= {variant.name: variant for variant in extra}
    # Both algorithms' own default of target_kl is 0.01: joint here, per action dimension there.
    for name, radius in {"trpo-default": 0.01, "adaptive_trpo": 0.01, "adaptive_trpo-m8": M8["target_kl"]}.items():
        variants |= {variant.name: variant for variant in _sensitivity(variants[name], radius)}
    fixed = variants["adaptive_trpo-fixed"]
    return variants | {variant.name: variant for variant in _sensitivity(fixed, 0.01)}


VARIANTS: dict[str, Variant] = _all()
MAIN = tuple(variant.name for variant in VARIANTS.values() if variant.role in (STOCK, OURS))


def find_variant(name: str) -> Variant:
    """
    :param name: as in ``--variants``
    :return: the variant
    :raises ValueError: where there is none of that name
    """
    if name not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def algorithm_class(algorithm: str) -> type[Any]:
    """
    Takes seconds the first time, for what it imports.

    :param algorithm: of a variant
    :return: its class
    """
    if algorithm in IMPLEMENTATIONS:
        module, _, name = IMPLEMENTATIONS[algorithm].partition(":")
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found
    from rl_zoo3.utils import ALGOS

    from sb3_trustregion.zoo import register

    register()
    return ALGOS[algorithm]


def accepted_arguments(algorithm: str) -> set[str]:
    """
    :param algorithm: of a variant
    :return: names of the arguments of its constructor, with those that a subclass passes on
    """
    names: set[str] = set()
    for cls in algorithm_class(algorithm).__mro__:
        parameters = inspect.signature(cls).parameters
        names |= set(parameters)
        if "kwargs" not in parameters:
            break
    return names - {"args", "kwargs"}


def derive_variant(name: str, definition: Any) -> Variant:
    """
    A variant that a grid file defines.

    :param name: its name
    :param definition: ``base``, the name of a variant, and ``hyperparameters``, what differs
    :return: the variant
    :raises ValueError: where the definition is malformed, or the name is taken
    """
    if not isinstance(definition, dict) or set(definition) - {"base", "hyperparameters", "label"}:
        raise ValueError(f"variant {name!r} must be defined by base, hyperparameters and label, got {definition!r}")
    if name in VARIANTS or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"variant's name must be new, of letters, digits, '-', '_' and '.', got {name!r}")
    base = find_variant(str(definition.get("base", "")))
    changes = definition.get("hyperparameters") or {}
    known = (accepted_arguments(base.algorithm) | OF_THE_ZOO) - OF_THE_RUN
    unknown = sorted(map(str, set(changes) - known)) if isinstance(changes, dict) else [repr(changes)]
    if unknown:
        raise ValueError(
            f"hyperparameters of variant {name!r} must be by names {base.algorithm} knows, got {', '.join(unknown)}"
        )
    return replace(
        base,
        name=name,
        label=str(definition.get("label", name)),
        hyperparameters=base.hyperparameters | changes,
        role=OURS if base.role == SENSITIVITY else base.role,
        radius_factor=1.0,
    )
