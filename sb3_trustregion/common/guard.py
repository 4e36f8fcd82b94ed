"""
Bad data stops here: rewards and observations that are not finite reach neither the policy nor any statistic.

The recorder looks at every step that SB3's ``collect_rollouts`` takes and puts stand-ins in place of what is faulty:
what the environment showed last. A single NaN would spoil the statistics of ``VecNormalize`` for good, and its clipping
makes an ordinary number of infinity: where there is one, a screen beneath it looks at the raw values first. A NaN
beside known values goes through to the policy, which may know what it stands for, and past the statistics.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecNormalize, unwrap_vec_normalize, unwrap_vec_wrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trustregion.common.learning_data import LARGEST_USABLE, BoolArray, ObsArray
from sb3_trustregion.core.batch import map_arrays, parts_of
from sb3_trustregion.core.distributions import distribution_parameters, preserved_distribution
from sb3_trustregion.core.functional import uncompiled

# Updates in a row without a usable step: at so many the user is told, from so many on training ends.
MANY_INVALID = 3
STOP_AFTER = 10


class UnusableDataError(ValueError):
    """Nothing can be learned from what the environment returns. A ``ValueError``: the Zoo's search prunes on those."""


class Screen:
    """
    Looks at raw values before ``VecNormalize`` does. In a step that brought nothing sound its statistics stand still.

    Not a wrapper, which users would meet among theirs: two methods of the environment are overlaid while it looks.
    """

    def __init__(self, normalizer: VecNormalize) -> None:
        self.normalizer, self.num_envs = normalizer, normalizer.num_envs
        self.observation = np.zeros(self.num_envs, dtype=bool)
        self.reward = np.zeros(self.num_envs, dtype=bool)
        self.terminal = np.zeros(self.num_envs, dtype=bool)
        self._stands_still = self._is_inside = False
        self._overlaid: list[tuple[RunningMeanStd, str]] = []
        self.put_in()

    def put_in(self) -> None:
        """Look at what the environment beneath returns from now on."""
        self.venv = self.normalizer.venv
        overlaid = ("reset", "step_wait")
        self._own = {name: own for name, own in vars(self.venv).items() if name in overlaid}
        self._reset, self._step_wait = self.venv.reset, self.venv.step_wait
        vars(self.venv).update({"reset": self.reset, "step_wait": self.step_wait})

    def take_out(self) -> None:
        """Leave the environment as it was, and its statistics as the user wants them."""
        for name in ("reset", "step_wait"):
            vars(self.venv).pop(name, None)
        vars(self.venv).update(self._own)
        self._go_on()

    def _go_on(self) -> None:
        if self._stands_still:
            self.normalizer.training, self._stands_still = True, False
        for statistics, name in self._overlaid:
            vars(statistics).pop(name, None)
        self._overlaid = []

    def _look_past_nan(self) -> None:
        """Have statistics go by what is known until the next step; a user's own, which may know NaN, are let alone."""
        statistics = parts_of(getattr(self.normalizer, "obs_rms", None))
        for each in (each for each in statistics if isinstance(each, RunningMeanStd)):
            for name, function in BY_KNOWN.items():
                if name not in vars(each) and getattr(type(each), name) is getattr(RunningMeanStd, name):
                    vars(each)[name] = partial(function, each)
                    self._overlaid.append((each, name))

    def _beneath(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        """What a method returns, and whether it was called from above: it may call these two itself meanwhile."""
        from_above, self._is_inside = not self._is_inside, True
        try:
            return method(*args, **kwargs), from_above
        finally:
            self._is_inside = not from_above

    def reset(self, *args: Any, **kwargs: Any) -> VecEnvObs:
        """Reset the environments, and return finite observations."""
        observations, from_above = self._beneath(self._reset, *args, **kwargs)
        return self._screened(observations, None) if from_above else observations

    def step_wait(self, *args: Any, **kwargs: Any) -> VecEnvStepReturn:
        """Step the environments, and return finite values."""
        (observations, rewards, dones, infos), from_above = self._beneath(self._step_wait, *args, **kwargs)
        if not from_above:
            return observations, rewards, dones, infos
        if np.shape(rewards) == ():
            rewards = np.reshape(rewards, self.num_envs)
        if self.normalizer.norm_reward:
            self.reward = ~usable(rewards)
            last_rewards = self.normalizer.old_reward
            rewards = writable(rewards) if self.reward.any() else rewards
            replace(rewards, self.reward, last_rewards if np.shape(last_rewards) == np.shape(rewards) else None)
        self.terminal = np.array([bool(done) and not self._end_is_sound(infos[i]) for i, done in enumerate(dones)])
        last = vars(self.normalizer).get("old_obs")  # none before it has been reset
        return self._screened(observations, last), rewards, dones, infos

    def _screened(self, observations: VecEnvObs, last: Any) -> VecEnvObs:
        self._go_on()
        self.observation = ~self._sound(observations, self.num_envs)
        if self.normalizer.training and bool((self.observation | self.reward).all()):
            self.normalizer.training, self._stands_still = False, True
        if self.observation.any():
            observations = map_arrays(writable, observations)
            replace(observations, self.observation, last)
        return observations

    def _sound(self, observations: Any, n: int) -> BoolArray:
        """Shape (n,): whether what goes into statistics is usable; NaN beside known values is the policy's to judge."""
        normalized = observations
        if isinstance(observations, dict):
            normalized = {key: observations[key] for key in self.normalizer.norm_obs_keys or ()}
        if not self.normalizer.norm_obs or len(normalized) == 0:
            return np.ones(n, dtype=bool)
        sound = usable(normalized)
        if sound.all():
            return sound
        self._look_past_nan()  # of what stands in, too
        return sound | is_incomplete(normalized, len(normalized) < len(observations))

    def _end_is_sound(self, info: dict[str, Any]) -> bool:
        terminal = info.get("terminal_observation")
        if terminal is None or not info.get("TimeLimit.truncated", False):  # else nobody looks at it
            return True
        return bool(self._sound(map_arrays(lambda part: np.asarray(part)[None], terminal), 1).all())


@contextmanager
def aside(screen: Screen | None) -> Iterator[None]:
    """Take a screen, if there is one, out for a while: callbacks go through the wrappers, and may change them."""
    if screen is not None:
        screen.take_out()
    try:
        yield
    finally:
        if screen is not None:
            screen.put_in()


@contextmanager
def screened(env: VecEnv) -> Iterator[Screen | None]:
    """Put a screen beneath ``VecNormalize`` for a while, so that nobody else meets it."""
    normalizer = unwrap_vec_normalize(env)
    checker = unwrap_vec_wrapper(env, VecCheckNan)
    if normalizer is None or (isinstance(checker, VecCheckNan) and checker.raise_exception):  # which is to see NaN
        yield None
        return
    screen = Screen(normalizer)
    try:
        yield screen
    finally:
        screen.take_out()


def usable(values: Any) -> BoolArray:
    """(N, ...) or a dict of those to shape (N,): whether all of an environment is finite, squares included."""
    if isinstance(values, dict):
        parts: list[BoolArray] = [usable(part) for part in values.values()]
        return np.asarray(np.stack(parts).all(axis=0))
    array = np.asarray(values)
    if array.dtype == np.float16:  # in which squares overflow
        array = array.astype(np.float32)
    if array.dtype.kind != "f" or float(np.vdot(array, array)) < LARGEST_USABLE**2:  # as a rule, in one pass
        return np.ones(len(array), dtype=bool)
    result: BoolArray = (np.abs(array.reshape(len(array), -1)) < LARGEST_USABLE).all(axis=1)
    return result


def is_incomplete(observations: Any, is_more_known: bool) -> BoolArray:
    """Shape (N,): whether numbers, (N, ...) or a dict, are usable but for NaN, and some known, or ``is_more_known``."""
    parts = [np.reshape(part, (len(part), -1)).astype(np.float64) for part in parts_of(observations)]
    numbers = np.concatenate(parts, axis=1)
    missing = np.isnan(numbers)
    usable_else = (missing | (np.abs(numbers) < LARGEST_USABLE)).all(axis=1)
    return np.asarray(usable_else & (is_more_known | ~missing.all(axis=1)))


def update_by_known(statistics: RunningMeanStd, values: Any) -> None:
    """``RunningMeanStd.update``, without NaN."""
    known = ~np.isnan(values)
    if known.all():
        return RunningMeanStd.update(statistics, values)
    n_known = known.sum(axis=0)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(n_known, 1)
    var = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0) / np.maximum(n_known, 1)
    statistics.update_from_moments(np.where(n_known > 0, mean, np.nan), var, len(values))


def update_from_known(statistics: RunningMeanStd, mean: Any, var: Any, count: float) -> None:
    """``RunningMeanStd.update_from_moments``: a feature of which nothing is known stays as it is."""
    unknown = np.isnan(mean)
    mean, var = np.where(unknown, statistics.mean, mean), np.where(unknown, statistics.var, var)
    RunningMeanStd.update_from_moments(statistics, mean, var, count)


BY_KNOWN: dict[str, Callable[..., None]] = {"update": update_by_known, "update_from_moments": update_from_known}


def writable(values: Any) -> npt.NDArray[Any]:
    """An array itself, which a frame stack may go on from; a copy where it must not be written to, or is a list."""
    array = np.asarray(values)
    return array if array.flags.writeable else array.copy()


def replace(values: Any, faulty: BoolArray, stand_ins: Any) -> None:
    """Put stand-ins (None: zeros) in place of faulty values, (N, ...) or a dict; a ``ValueError`` where read-only."""
    if not faulty.any():
        return
    if isinstance(values, dict):
        for key, value in values.items():
            replace(value, faulty, None if stand_ins is None else stand_ins[key])
    elif isinstance(values, np.ndarray) and not values.flags.writeable:
        raise ValueError("env must return writable observations where a number is not finite, got a read-only array")
    else:
        instead = np.asarray(0 if stand_ins is None else np.asarray(stand_ins)[faulty])
        # They may be the same array.
        values[faulty] = np.where(np.abs(instead.astype(np.float64)) < LARGEST_USABLE, instead, 0)


def is_understood(policy: ActorCriticPolicy, observations: ObsArray) -> bool:
    """Whether a policy makes usable outputs (a logit may be -inf) and gradients of NaN, or of the largest float."""
    policy = uncompiled(policy)
    try:
        with preserved_distribution(policy), th.enable_grad():
            tensors = policy.obs_to_tensor(observations)[0]
            outputs = (*distribution_parameters(policy.get_distribution(tensors)), policy.predict_values(tensors))
        sound = [th.where(output.isinf(), 0.0, output) for output in outputs]
        sums = [output.sum() for output in sound if output.requires_grad]
        leaves = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        gradients = th.autograd.grad(th.stack(sums).sum(), leaves, allow_unused=True) if sums else ()
    except (ValueError, RuntimeError, IndexError):  # torch.distributions refuses NaN, an embedding what is no index
        return False
    # NaN is not below it.
    return all(bool((part.abs() < LARGEST_USABLE).all()) for part in (*sound, *gradients) if part is not None)


def accept(model: OnPolicyAlgorithm) -> None:
    """Note that a step was taken."""
    model.n_invalid_in_a_row = 0  # type: ignore[attr-defined]


def refuse(model: OnPolicyAlgorithm, reason: str, lasting: bool) -> None:
    """
    Count an update without a step, tell the user in time, end a training that cannot learn.

    :param lasting: whether training ends if this goes on: not for a mere lack of improvement
    :raises UnusableDataError: after ``STOP_AFTER`` lasting faults in a row; the last good policy is in place
    """
    model.n_invalid += 1  # type: ignore[attr-defined]
    model.n_invalid_in_a_row = n_in_a_row = model.n_invalid_in_a_row + 1  # type: ignore[attr-defined]
    if n_in_a_row == MANY_INVALID:
        warnings.warn(f"{MANY_INVALID} updates without a policy step in a row, now because {reason}", stacklevel=3)
    if lasting and n_in_a_row >= STOP_AFTER:
        raise UnusableDataError(
            f"{n_in_a_row} updates in a row could not be used, the last because {reason}. "
            "The policy is the last good one and can be saved."
        )
