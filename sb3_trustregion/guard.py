"""
Bad data stops here: rewards and observations that are not finite reach neither the policy nor any statistic.

A wrapper that training alone sees. It hands on neutral values in place of faulty ones and tells which environments
they came from, so that the recorder can leave these transitions out. A single NaN would spoil the statistics of
``VecNormalize`` for good, and its clipping makes an ordinary number of infinity: where there is one, a screen beneath
it looks at the raw values first.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

# Squares of anything below this stay within single precision.
LARGEST = 1e18
LARGEST_SQUARE = LARGEST**2


class Screen(VecEnvWrapper):
    """
    Looks at raw values before ``VecNormalize`` does, and hands on those of a sound environment for faulty ones.

    In a step that brought nothing sound the statistics stand still.

    :param normalizer: whose environment this is put before
    """

    def __init__(self, normalizer: VecNormalize) -> None:
        super().__init__(normalizer.venv)
        self.normalizer = normalizer
        # Of the last step or reset; by environment too, where it was not sound.
        self.is_sound = True
        self.observation = np.zeros(self.num_envs, dtype=bool)
        self.reward = np.zeros(self.num_envs, dtype=bool)
        self.terminal = np.zeros(self.num_envs, dtype=bool)

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations, finite
        """
        observations = self.venv.reset()
        self.observation = ~usable(observations, self.num_envs)
        self.is_sound = not self.observation.any()
        cleaned: VecEnvObs = _replaced(observations, self.observation, self._stand_ins(self.observation))
        return cleaned

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: the step, finite
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        bad_ends = [_clean_end(info) for info in infos]
        self.is_sound = not any(bad_ends) and all_usable(observations) and all_usable(rewards)
        if self.is_sound:  # as a rule
            return observations, rewards, dones, infos
        self.observation = ~usable(observations, self.num_envs)
        self.reward = ~usable(rewards, self.num_envs)
        self.terminal = np.array(bad_ends)
        faulty = self.observation | self.reward
        stand_ins = self._stand_ins(faulty)
        return _replaced(observations, faulty, stand_ins), _replaced(rewards, faulty, stand_ins), dones, infos

    def _stand_ins(self, faulty: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64] | None:
        """A sound environment for each faulty one; None where none is sound."""
        sound = (~faulty).nonzero()[0]
        if len(sound) == 0:
            self.normalizer.training = False
            return None
        return np.resize(sound, int(faulty.sum()))


class GuardedVecEnv(VecEnvWrapper):
    """
    The training environment without what is not finite.

    :param venv: the training environment
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        normalizer = unwrap_vec_normalize(venv)
        self.screen = None if normalizer is None else Screen(normalizer)
        # Of the last step, by environment: is the transition faulty, is the observation that it led to.
        self.faulty = np.zeros(self.num_envs, dtype=bool)
        self.faulty_observation = np.zeros(self.num_envs, dtype=bool)
        self.last_fault = ""

    @contextmanager
    def screened(self) -> Iterator[None]:
        """Put the screen beneath ``VecNormalize`` for the time of one call, so that nobody else meets it."""
        if self.screen is None:
            yield
            return
        normalizer = self.screen.normalizer
        venv, training = normalizer.venv, normalizer.training
        normalizer.venv = self.screen
        try:
            yield
        finally:
            normalizer.venv, normalizer.training = venv, training

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations, finite
        """
        with self.screened():
            observations = self.venv.reset()
        return self.cleaned(observations)

    def forget(self) -> None:
        """Other episodes begin: what was noted of the last observations is no longer so."""
        self.faulty_observation = np.zeros(self.num_envs, dtype=bool)

    def cleaned_first(self, observations: VecEnvObs) -> VecEnvObs:
        """
        :param observations: that a rollout starts from, perhaps already cleaned at the end of the last one
        :return: the same with zeros in place of faulty observations, which stay noted
        """
        noted = self.faulty_observation
        cleaned = self.cleaned(observations)
        self.faulty_observation = self.faulty_observation | noted
        return cleaned

    def cleaned(self, observations: VecEnvObs) -> VecEnvObs:
        """
        :param observations: (N, ...) or a dict of those, as the policy would see them
        :return: the same with zeros in place of faulty observations, which are noted
        """
        self.faulty_observation = ~usable(observations, self.num_envs)
        if self.screen is not None and not self.screen.is_sound:
            self.faulty_observation = self.faulty_observation | self.screen.observation
        self._note("observation", self.faulty_observation)
        cleaned: VecEnvObs = _replaced(observations, self.faulty_observation)
        return cleaned

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: the step, finite
        """
        observations, rewards, dones, infos = self._screened_step()
        found = [_clean_end(info) for info in infos]
        sound = self.screen is None or self.screen.is_sound
        if sound and not any(found) and all_usable(observations) and all_usable(rewards):  # as a rule
            self.faulty = self.faulty_observation = np.zeros(self.num_envs, dtype=bool)
            return observations, rewards, dones, infos
        bad_rewards, bad_ends = ~usable(rewards, self.num_envs), np.array(found)
        if self.screen is not None and not self.screen.is_sound:
            bad_rewards |= self.screen.reward
            bad_ends |= self.screen.terminal
        self._note("reward", bad_rewards)
        self._note("terminal observation", bad_ends)
        observations = self.cleaned(observations)
        # Where an episode ended, the observation is of the next one and says nothing about this transition.
        self.faulty = bad_rewards | np.where(dones, bad_ends, self.faulty_observation)
        return observations, _replaced(rewards, bad_rewards), dones, infos

    def _screened_step(self) -> VecEnvStepReturn:
        if self.screen is None:
            return self.venv.step_wait()
        with self.screened():
            return self.venv.step_wait()

    def _note(self, quantity: str, faulty: npt.NDArray[np.bool_]) -> None:
        if not faulty.any():
            return
        first = not self.last_fault
        self.last_fault = (
            f"the {quantity} was not finite, or above {LARGEST:g}, in environment(s) {faulty.nonzero()[0].tolist()}"
        )
        if first:
            warnings.warn(f"{self.last_fault}: such steps are left out of training", stacklevel=2)


def usable(values: VecEnvObs | npt.NDArray[Any] | tuple[Any, ...], n_envs: int) -> npt.NDArray[np.bool_]:
    """
    :param values: (N, ...) or a dict of those
    :param n_envs: N
    :return: shape (N,), whether all that belongs to an environment is finite, squares included
    """
    parts = values.values() if isinstance(values, dict) else (values,)
    result = np.ones(n_envs, dtype=bool)
    for part in parts:
        array = np.asarray(part)
        if array.dtype.kind == "f":
            result &= (np.abs(array.reshape(n_envs, -1)) < LARGEST).all(axis=1)
    return result


def all_usable(values: VecEnvObs | npt.NDArray[Any]) -> bool:
    """
    The same for all environments at once, in one pass, as it is asked at every step.

    :param values: (N, ...) or a dict of those
    :return: whether all of it is usable; False where that takes a closer look
    """
    if isinstance(values, dict):
        return all(all_usable(part) for part in values.values())
    array = np.asarray(values)
    return array.dtype.kind != "f" or float(np.vdot(array, array)) < LARGEST_SQUARE


def _replaced(values: Any, faulty: npt.NDArray[np.bool_], stand_ins: npt.NDArray[np.int64] | None = None) -> Any:
    """Values with those of other environments, or zeros, in place of faulty ones."""
    if not faulty.any():
        return values
    if isinstance(values, dict):
        return {key: _replaced(value, faulty, stand_ins) for key, value in values.items()}
    cleaned = np.array(values)
    cleaned[faulty] = 0 if stand_ins is None else cleaned[stand_ins]
    return cleaned


def _clean_end(info: dict[str, Any]) -> bool:
    """Put zeros in place of a faulty terminal observation; tell whether it was."""
    terminal = info.get("terminal_observation")
    if terminal is None:
        return False
    single = {key: np.asarray(value) for key, value in terminal.items()} if isinstance(terminal, dict) else terminal
    if usable(single, 1).all():
        return False
    zeros = np.zeros_like
    cleaned = {key: zeros(value) for key, value in single.items()} if isinstance(single, dict) else zeros(single)
    info["terminal_observation"] = cleaned
    return True
