"""
Steps 4 and 5 of the trust-region algorithm as one object.

``expect`` registers what a step promised; ``review`` compares it with the rollout that follows, undoes the step or
keeps it, and tells the next radius. A judge knows a policy and rollouts, no environment and no algorithm.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trustregion.common import persistence
from sb3_trustregion.common.learning_data import Rollout, copied, flatten_time
from sb3_trustregion.common.persistence import Tensors
from sb3_trustregion.common.validation import check_choice, check_integer, check_number, settle
from sb3_trustregion.core import improvement
from sb3_trustregion.core.batch import pieces_of, take
from sb3_trustregion.core.distributions import Observations, in_double
from sb3_trustregion.core.functional import ActionHead, ValueHead, pieces_for, uncompiled
from sb3_trustregion.core.improvement import Estimate, FloatArray, Improvement, Promise
from sb3_trustregion.core.parameters import are_same, fingerprint, folded_into, is_finite, restore, snapshot, tensors_of
from sb3_trustregion.core.radius import RadiusRule, TrustRegionState, restarted, shrink_radius, update_radius
from sb3_trustregion.core.surrogate import LEAST_EFFECTIVE_SHARE, effective_share

ESTIMATORS = ("rollout", "episodes", "surrogate")
# A roll-back helped where it brought back at least this share of what had been lost.
REGAINED = 0.5
# Steps in a row that could not be judged: at so many the user is told.
MANY_UNJUDGED = 10
CHANGED = "the policy has been changed since"
TOO_FEW = "a rollout has too few parts that are independent: episodes (by Monitor), or stretches of one noise of gSDE"
# Both rollouts are brought to one unit of reward; where it has changed by more than this, the critic's is another too.
LARGEST_DRIFT = 2.0


class Snapshot(NamedTuple):
    """The policy before an update."""

    undone: Tensors  # what a roll-back brings back, by name
    kept: Tensors  # what else was of the policy that acted, for its critic to be asked later
    joint: bool  # whether actor, critic and optimiser are undone together
    optimizer: dict[Any, Any] | None = None  # state of the optimiser; None where it does not move the actor

    @classmethod
    def of(cls, policy: ActorCriticPolicy, undone: Iterable[str] | None = None) -> "Snapshot":
        """
        Copies of a policy that is about to be updated. A roll-back brings back the parameters that ``undone`` names,
        apart from critic and optimiser; where that is None all trainable ones and the optimiser: they are one network.
        """
        policy = uncompiled(policy)
        tensors = snapshot(policy)
        parameters = {name for name, _ in policy.named_parameters()}
        names = parameters if undone is None else {*undone, *folded_into(policy)}
        optimizer = copied(policy.optimizer.state_dict().get("state", {})) if undone is None else None
        return cls(
            undone={name: tensor for name, tensor in tensors.items() if name in names},
            kept={name: tensor for name, tensor in tensors.items() if name not in names},
            joint=undone is None,
            optimizer=optimizer,
        )

    def as_dict(self) -> dict[str, Any]:
        """The snapshot as a dict, for a checkpoint."""
        optimizer = None if self.optimizer is None else persistence.taken_apart(self.optimizer)
        return {**self._asdict(), "optimizer": optimizer}

    @property
    def tensors(self) -> Tensors:
        """All tensors, undone and kept, by name."""
        return {**self.undone, **self.kept}

    def changed(self, policy: ActorCriticPolicy) -> "Snapshot":
        """The snapshot without what the update left alone: it is there, and need not be saved twice."""
        present = tensors_of(policy)

        def moved(tensors: Tensors) -> Tensors:
            return {name: tensor for name, tensor in tensors.items() if not are_same(tensor, present[name])}

        return self._replace(undone=moved(self.undone), kept=moved(self.kept))

    def undoes_what_is_spoiled(self, policy: ActorCriticPolicy) -> bool:
        """
        End an update, in evaluation mode, unless it has led something out of the finite numbers: then it is undone.

        First, as that mode may fold parameters into frozen ones. A user's buffer may hold infinity. Tells if undone.
        """
        sound = {name for name, tensor in self.tensors.items() if is_finite(tensor)}
        spoiled = not all(is_finite(now) for name, now in tensors_of(policy).items() if name in sound)
        if spoiled:
            self.restore(policy, with_statistics=True)
        policy.set_training_mode(False)
        return spoiled

    def restore(self, policy: ActorCriticPolicy, with_statistics: bool = False) -> None:
        """Undo an update; buffers (statistics of the data) stay, unless they may be spoiled (``with_statistics``)."""
        restore(policy, self.tensors if with_statistics else self.undone)
        optimizer, saved = policy.optimizer, self.optimizer
        if saved is None:
            return
        groups = list(getattr(optimizer, "param_groups", []))
        if getattr(type(optimizer), "load_state_dict", None) is th.optim.Optimizer.load_state_dict:
            parameters = dict(enumerate(parameter for group in groups for parameter in group["params"]))
            optimizer.state.clear()  # not by load_state_dict, which gives all that it finds the parameter's type
            optimizer.state.update({parameters.get(key, key): value for key, value in saved.items()})
        elif "state" in (present := optimizer.state_dict()):
            optimizer.load_state_dict({**present, "state": saved})
            getattr(optimizer, "param_groups", [])[:] = groups  # the same objects: somebody may hold them


class PendingStep(NamedTuple):
    """A step taken and not yet judged, or undone and not yet reviewed."""

    before: Snapshot  # θ_k, and the critic V as it stood when rollout k was collected
    left: str  # fingerprint of the policy that the update left behind
    baseline: Estimate  # performance in rollout k, by the estimator in use
    promise: Promise
    scale: float  # unit of the rewards in which both rollouts are compared
    gamma: float  # discount factor of that time
    started_fresh: bool  # whether rollout k began with new episodes


class Rejected(NamedTuple):
    """A step that was undone, until the rollout of the restored policy shows whether that helped."""

    step: PendingStep  # ``left`` is of the restored policy
    performance: Estimate  # of the policy that the step led to, by the estimator in use
    state: TrustRegionState  # before the step was judged


class Verdict(NamedTuple):
    """
    The answer of steps 4 and 5.

    :param state: radius, pooled evidence and counters from now on
    :param measured: what the last step promised and brought; None where none could be judged
    :param undone: whether the last step was rolled back; the policy is θ_k again
    """

    state: TrustRegionState
    measured: Improvement | None = None
    undone: bool = False

    @property
    def radius(self) -> float:
        """Radius for the next step."""
        return self.state.radius


class Judge:
    """
    Rule, radius, pending and rejected step, counters.

    :param rule: configuration of step 5
    :param start: the initial radius
    :param given: the user's argument that it comes from
    :param estimator: one of ``ESTIMATORS``
    """

    def __init__(self, rule: RadiusRule, start: float, given: float, estimator: str = "rollout") -> None:
        self.rule, self.estimator = rule, estimator
        self.state = TrustRegionState(radius=start, given=given)
        self.pending: PendingStep | None = None
        self.rejected: Rejected | None = None
        self.n_unjudged_in_a_row = 0

    def configure(self, rule: RadiusRule, start: float, given: float, estimator: str) -> None:
        """Heed what the user has set since the last update; arguments as in the constructor."""
        if estimator != self.estimator:
            self.forget()  # the baseline is another quantity
        self.rule, self.estimator = rule, estimator
        self.state = restarted(self.state, rule, start, given)

    def forget(self) -> None:
        """Drop what can no longer be judged: the next rollout is of another environment."""
        if self.pending is not None:
            self._leave_unjudged("environment or estimator are others")
        self.pending = self.rejected = None

    def meet(self, policy: ActorCriticPolicy) -> None:
        """Look at the policy that is about to act: what another one brings is not held against the step."""
        policy = uncompiled(policy)
        if self.pending is not None and fingerprint(policy, self.pending.before.joint) != self.pending.left:
            self._leave_unjudged(CHANGED)
            self.pending = None
        if self.rejected is not None and fingerprint(policy) != self.rejected.step.left:
            self.rejected = None

    def _leave_unjudged(self, reason: str) -> None:
        self.n_unjudged_in_a_row += 1
        if self.n_unjudged_in_a_row == MANY_UNJUDGED:
            warnings.warn(f"{MANY_UNJUDGED} steps in a row were judged by nobody, now because {reason}", stacklevel=4)

    def review(self, rollout: Rollout, policy: ActorCriticPolicy) -> Verdict:
        """
        Steps 4 and 5 for the step before.

        :param rollout: collected after it
        :param policy: that collected it; rolled back where the step is undone
        :return: what was measured, and what follows
        """
        policy = uncompiled(policy)
        rejected, self.rejected = self.rejected, None
        pending, self.pending = self.pending, None
        if rejected is not None and not obstacle(rollout, rejected.step, policy):
            residuals = functools.partial(old_residuals, rollout, rejected.step, policy)
            if was_in_vain(rejected, fares(rollout, rejected.step.scale, self.estimator, residuals)):
                self.state = rejected.state.counting_on(self.state)
        reason = "" if pending is None else obstacle(rollout, pending, policy)
        if reason:
            self._leave_unjudged(reason)
        if pending is None or reason:
            self.state = self.decide(None)
            return Verdict(self.state)
        before, (after, measured) = self.state, self._measure(rollout, pending, policy)
        if math.isfinite(measured.stderr):
            self.n_unjudged_in_a_row = 0
        else:
            self._leave_unjudged(TOO_FEW)
        measured = self.perceive(measured)
        self.state = self.decide(measured)
        if self.state.rolled_back:
            pending.before.restore(policy)
            # The policy is what it was: only the critic of that time is still needed, where it has been fitted since.
            restored = pending.before._replace(undone={}, joint=False, optimizer=None)
            left = fingerprint(policy)
            self.rejected = Rejected(pending._replace(before=restored, left=left), after, before)
        return Verdict(self.state, measured, self.state.rolled_back)

    def expect(self, promise: Promise, rollout: Rollout, before: Snapshot, policy: ActorCriticPolicy) -> None:
        """
        Register a step, to be judged by the next rollout; by the surrogate it is judged at once.

        :param promise: what the step promised
        :param rollout: that it was computed from
        :param before: the policy before the update
        :param policy: after the whole update
        """
        policy = uncompiled(policy)
        if self.estimator == "surrogate":
            linear = promise._replace(gain=promise.linear_gain, reliability=1.0)
            self.state = self.decide(self.perceive(Improvement(promise.gain, 0.0, linear)))
        elif rollout.is_recorded:
            promise = promise.scaled(rollout.unit)
            scale = float(rollout.scales[-1])
            baseline = fares(rollout, scale, self.estimator, lambda: rollout.own_residuals(scale))
            moved, left = before.changed(policy), fingerprint(policy, before.joint)
            self.pending = PendingStep(moved, left, baseline, promise, scale, rollout.gamma, rollout.starts_fresh)
        else:
            self._leave_unjudged("what the buffer held was not noted by collect_rollouts(), one sample a step")

    def shrink(self) -> None:
        """Answer a step that was invalid for its length."""
        self.state = shrink_radius(self.state, self.rule)

    def perceive(self, measured: Improvement) -> Improvement:
        """What the judge believes of what was measured: all of it. An ablation may see otherwise."""
        return measured

    def decide(self, measured: Improvement | None) -> TrustRegionState:
        """
        Step 5: accept or roll back, grow or shrink the radius.

        :param measured: what the last step promised and brought; None where none was judged
        :return: the state from now on; ``rolled_back`` tells whether the step is undone
        """
        return update_radius(self.state, measured, self.rule)

    def state_dict(self) -> Tensors:
        """Tensors by name, for a checkpoint."""
        # What the file cannot hold is not judged when it is loaded.
        keeps = self.pending is not None and persistence.can_be_taken_apart(self.pending.before.optimizer)
        records = {"pending": self.pending if keeps else None, "rejected": self.rejected, "state": self.state.as_dict()}
        return persistence.to_tensors(records)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """
        :param state: what ``state_dict`` gave
        :param strict: as in ``torch.nn.Module``: whether nothing may be missing
        :raises RuntimeError: where something is
        """
        if not strict:
            state = {**self.state_dict(), **state}
        self.state = TrustRegionState(**persistence.numbers(state, "state", get_type_hints(TrustRegionState)))
        self.pending = pending_step(state, "pending") if persistence.part(state, "pending") else None
        self.rejected = None
        if persistence.part(state, "rejected"):
            before = TrustRegionState(**persistence.numbers(state, "rejected.state", get_type_hints(TrustRegionState)))
            fared = Estimate(**persistence.numbers(state, "rejected.performance", get_type_hints(Estimate)))
            self.rejected = Rejected(pending_step(state, "rejected.step"), fared, before)

    def _measure(self, rollout: Rollout, step: PendingStep, policy: ActorCriticPolicy) -> tuple[Estimate, Improvement]:
        """Step 4: measure how the policy fares after a step by the critic before it, and what the step brought."""
        residuals = functools.cache(lambda: old_residuals(rollout, step, policy))
        after = fares(rollout, step.scale, self.estimator, residuals)
        whole = improvement.difference(after, step.baseline)
        if self.estimator == "episodes":
            return after, Improvement(*improvement.per_step(whole, rollout.episode_lengths), step.promise)
        ratios = old_ratios(rollout, step.before, policy)
        if not effective_share(th.from_numpy(ratios)) >= LEAST_EFFECTIVE_SHARE:  # nor where ratios are NaN
            return after, Improvement(*whole, step.promise)
        share = improvement.own_share(residuals(), ratios, rollout.dones, rollout.noise_held)
        return after, Improvement(*share, step.promise, whole)


def fares(rollout: Rollout, scale: float, estimator: str, residuals: Callable[[], FloatArray]) -> Estimate:
    """How a policy fares in its rollout: mean episode return, which asks no critic, or mean TD residual."""
    if estimator == "episodes":
        return improvement.episode_returns(rollout.episode_returns / scale)
    return improvement.performance(residuals(), rollout.dones, rollout.noise_held)


def was_in_vain(rejected: Rejected, now: Estimate) -> bool:
    """Whether a roll-back did not help: the environment got worse, not the policy, so the radius is what it was."""
    lost = rejected.step.baseline.mean - rejected.performance.mean
    return now.mean - rejected.performance.mean < REGAINED * lost  # NaN tells nothing


def rule_of(model: Any) -> RadiusRule:
    """The configuration of step 5 by the arguments of a model; a ``ValueError`` where one is out of range."""
    check_choice("improvement_estimator", model.improvement_estimator, ESTIMATORS)
    for name in ("radius_window", "radius_prior", "rollback_z"):
        if isinstance(getattr(model, name), bool):
            raise ValueError(f"{name} must be a number, got {getattr(model, name)}")
    settle(model, check_integer, "radius_window", at_least=1)
    settle(model, check_number, "rollback_z", optional=True, above=0.0)
    settle(model, check_number, "radius_prior", above=0.0)
    try:
        lower, upper = (float(bound) for bound in model.radius_bounds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"radius_bounds must be two numbers, got {model.radius_bounds!r}") from error
    return RadiusRule(
        kind=model.radius_rule,
        window=model.radius_window,
        minimum=lower,
        maximum=upper,
        rollback_z=model.rollback_z,
        exponent=model._radius_exponent,
        prior=model._relative_prior(),
    )


def make_judge(model: Any, start: float, given: float) -> Judge:
    """The judge that a model's arguments ask for; ``start`` and ``given`` as in ``Judge``."""
    judge_class: type[Judge] = Judge if model.judge_class is None else model.judge_class
    if not (isinstance(judge_class, type) and issubclass(judge_class, Judge)):
        raise ValueError(f"judge_class must be a subclass of Judge, got {judge_class!r}")
    rule = rule_of(model)
    try:
        return judge_class(rule, start, given, model.improvement_estimator, **(model.judge_kwargs or {}))
    except TypeError as error:
        raise ValueError(
            f"judge_kwargs must be arguments of {judge_class.__name__}, got {model.judge_kwargs!r}"
        ) from error


def obstacle(rollout: Rollout, step: PendingStep, policy: ActorCriticPolicy) -> str:
    """Why a step cannot be judged, "" where it can: policy and rollout must differ from those before by it alone."""
    if not rollout.is_recorded:
        return "the buffer holds or hands out what was not collected by collect_rollouts, one sample a step"
    # After a reset episodes are in another phase; not if that was so before.
    if rollout.starts_fresh and not step.started_fresh:
        return "the environment was reset"
    if max(rollout.scales[-1] / step.scale, step.scale / rollout.scales[-1]) > LARGEST_DRIFT:
        return "the scale of the rewards has changed"
    return "" if fingerprint(policy, step.before.joint) == step.left else CHANGED


@th.no_grad()
def old_residuals(rollout: Rollout, step: PendingStep, policy: ActorCriticPolicy) -> FloatArray:
    """Shape (T, N): TD residuals after a step by the critic, the rewards' unit and the discount factor before it."""
    head, tensors = ValueHead(policy), step.before.tensors

    def values(observations: Observations) -> FloatArray:
        parts = [head.at(tensors, take(observations, piece)).cpu().numpy() for piece in pieces_of(observations)]
        return np.concatenate(parts)

    seen = values(obs_as_tensor(flatten_time(rollout.observations), policy.device)).reshape(rollout.shape)
    last = values(obs_as_tensor(rollout.last_observations, policy.device))
    ends = rollout.terminal_observations
    at_ends = np.zeros(0) if ends is None else values(policy.obs_to_tensor(ends)[0])
    return rollout._replace(gamma=step.gamma).residuals(seen, last, at_ends, step.scale)


@th.no_grad()
def old_ratios(rollout: Rollout, before: Snapshot, policy: ActorCriticPolicy) -> FloatArray:
    """Shape (T, N): π_k/π_{k+1} of the actions in the rollout after a step."""
    observations = obs_as_tensor(flatten_time(rollout.observations), policy.device)
    actions = th.as_tensor(rollout.actions.reshape(-1, rollout.actions.shape[-1]), device=policy.device)
    actions = actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else actions.float()
    head = ActionHead(policy)
    pieces = pieces_for(policy, observations)
    parts = [in_double(head.at(before.tensors, take(observations, piece), actions[piece])[0]) for piece in pieces]
    ratios: FloatArray = np.exp(th.cat(parts).cpu().numpy().reshape(rollout.shape) - rollout.log_probs)
    return ratios


def pending_step(state: Mapping[str, Any], name: str) -> PendingStep:
    """Make a pending step of the tensors of one part."""
    joint = persistence.numbers(state, f"{name}.before", {"joint": bool})["joint"]
    moments = persistence.part(state, f"{name}.before.optimizer")
    if joint is True and not moments:
        persistence.check_present(state, [f"{name}.before.optimizer"])
    optimizer = persistence.put_together(moments) if moments else None
    undone, kept = (persistence.part(state, f"{name}.before.{which}") for which in ("undone", "kept"))
    before = Snapshot(undone, kept, joint, optimizer)
    plain = persistence.numbers(state, name, {"scale": float, "gamma": float, "started_fresh": bool})
    baseline = Estimate(**persistence.numbers(state, f"{name}.baseline", get_type_hints(Estimate)))
    promise = Promise(**persistence.numbers(state, f"{name}.promise", get_type_hints(Promise)))
    return PendingStep(before, persistence.text(state, f"{name}.left"), baseline, promise, **plain)
