"""
Keeps what SB3's rollout buffer does not: terminal observations, the reward's scale at each step, what was faulty.

Fed by a callback, because ``on_step`` runs before SB3 adds γ·V(terminal observation) to truncated rewards.
"""

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from sb3_trustregion.common import learning_data
from sb3_trustregion.common.guard import Screen, aside, is_understood, replace, usable
from sb3_trustregion.common.learning_data import LARGEST_USABLE, BoolArray, ObsArray, Rollout
from sb3_trustregion.core.batch import few_of, map_arrays, take
from sb3_trustregion.core.distributions import Observations
from sb3_trustregion.core.improvement import FloatArray


class Recorder:
    """The record of one rollout; ``rollout`` joins it with the buffer once that is full."""

    def __init__(self) -> None:
        # Of the observations that the next step starts from, over the ends of rollouts.
        self.faulty_observation: BoolArray = np.zeros(0, dtype=bool)
        self.last_fault = ""
        # Whether the last rollout was one to learn from.
        self.goes_on = True
        # While environments are reset at the beginning of training.
        self.screen: Screen | None = None
        # At the start of a rollout, before gSDE has drawn: what a checkpoint written there goes on from.
        self.random_before: dict[str, Any] | None = None
        self._clear()

    def _clear(self) -> None:
        # Of each step: faulty transitions, rewards kept from ``VecNormalize``, rewards with stand-ins, their divisor.
        self._steps: list[tuple[BoolArray, BoolArray, Any, float]] = []
        self._terminal_observations: list[ObsArray] = []
        self._truncated: list[int] = []
        self._episodes: list[tuple[float, float]] = []
        self._rewards: Any = None
        self._last: tuple[Any, BoolArray] = None, np.zeros(0, dtype=bool)
        self._bad_rewards: BoolArray | None = None

    def start(self, n_envs: int, screen: Screen | None) -> None:
        """Forget what was noted before: the environments have been reset, beneath a screen perhaps."""
        self.faulty_observation = np.zeros(n_envs, dtype=bool) if screen is None else screen.observation
        self._note("observation", self.faulty_observation)

    def begin(self, model: OnPolicyAlgorithm) -> None:
        """Begin the record of a rollout."""
        self._clear()
        assert model._last_obs is not None
        if len(self.faulty_observation) != model.n_envs:
            self.start(model.n_envs, None)
        faulty = self._clean(model, model._last_obs, None)
        self._note("observation", faulty)
        self.faulty_observation = self.faulty_observation | faulty

    def step(self, model: OnPolicyAlgorithm, seen: dict[str, Any], screen: Screen | None) -> None:
        """
        Note one step, and put stand-ins in place of observations that are faulty: rewards are the user's until ``end``.

        ``seen`` are the local variables of SB3's ``collect_rollouts``, ``screen`` is that beneath ``VecNormalize``.
        """
        rewards, dones = seen["rewards"], np.asarray(seen["dones"], dtype=bool)
        bad_observations = self._clean(model, seen["new_obs"], model._last_obs)
        screened = np.zeros(len(dones), dtype=bool)
        if screen is not None:
            bad_observations, screened = bad_observations | screen.observation, screen.reward.copy()
            self._note("terminal observation", screen.terminal)
        self._note("reward", screened)
        self._note("observation", bad_observations)
        before, self._rewards = self._rewards, np.array(rewards).reshape(len(dones))
        replace(self._rewards, ~usable(self._rewards), before)
        faulty = self.faulty_observation | (bad_observations & ~dones)
        for env_index in dones.nonzero()[0]:
            faulty[env_index] |= screen is not None and screen.terminal[env_index]
            faulty[env_index] |= self._end(model, int(env_index), len(dones), seen["infos"][env_index])
        scale = reward_scale(unwrap_vec_normalize(seen["env"]), self._rewards)
        self._steps.append((faulty, screened, self._rewards, scale))
        self.faulty_observation = bad_observations

    def keep_last(self, seen: dict[str, Any]) -> None:
        """Keep what the buffer's advantages end with: the user may reset the environments before they are judged."""
        if self._steps:
            self._last = copy.deepcopy(seen["new_obs"]), np.array(seen["dones"], dtype=bool)

    def end(self, model: OnPolicyAlgorithm, seen: dict[str, Any]) -> None:
        """Put stand-ins where rewards are still not finite when the user's buffer and callback have had their say."""
        buffer = model.rollout_buffer
        shape = len(self._steps), buffer.n_envs
        if shape[0] != buffer.buffer_size or np.shape(getattr(buffer, "rewards", ())) != shape:
            return
        bad = ~(np.abs(buffer.rewards) < LARGEST_USABLE)  # nor where it is NaN
        if not bad.any():
            return
        stand_ins = np.stack([rewards for _, _, rewards, _ in self._steps]).astype(buffer.rewards.dtype)
        stand_ins.reshape(-1)[self._truncated] += model.gamma * self._end_values(model)
        buffer.rewards[bad] = stand_ins[bad]
        if all(np.all(np.abs(values) < LARGEST_USABLE) for values in (buffer.advantages, buffer.returns)):
            return  # the user computes them otherwise
        self._note("reward", bad.any(axis=0))
        self._bad_rewards = bad
        buffer.compute_returns_and_advantage(last_values=seen["values"], dones=seen["dones"])

    @th.no_grad()
    def _end_values(self, model: OnPolicyAlgorithm) -> FloatArray:
        """Shape (K,): values at the truncated steps, by the critic in evaluation mode, as SB3 added them to rewards."""
        ends = _stacked(self._terminal_observations)
        return np.zeros(0) if ends is None else values_of(model.policy, model.policy.obs_to_tensor(ends)[0])

    def _clean(self, model: OnPolicyAlgorithm, observations: Any, stand_ins: Any) -> BoolArray:
        faulty = ~usable(observations)
        if faulty.any() and is_understood(model.policy, take(observations, faulty)):
            faulty[:] = False
        for env_index in faulty.nonzero()[0] if faulty.sum() > 1 else ():
            faulty[env_index] = not is_understood(model.policy, take(observations, [env_index]))
        replace(observations, faulty, stand_ins)
        return faulty

    def _end(self, model: OnPolicyAlgorithm, env_index: int, n_envs: int, info: dict[str, Any]) -> bool:
        """Note the end of an episode; tell whether its last observation was faulty."""
        episode = info.get("episode")
        if isinstance(episode, dict):
            total, length = _number(episode.get("r")), _number(episode.get("l"))
            # The return of an episode with a faulty reward says nothing.
            if abs(total) < LARGEST_USABLE and abs(length) < LARGEST_USABLE:  # NaN is not
                self._episodes.append((total, length))
        # Nobody looks at the last observation of an episode that has ended by itself.
        if info.get("terminal_observation") is None or not info.get("TimeLimit.truncated", False):
            return False
        last = take(model._last_obs, [env_index])
        # As SB3 will ask for its value: images may have the channel last.
        observation, _ = model.policy.obs_to_tensor(info["terminal_observation"])
        terminal = map_arrays(lambda part: part.cpu().numpy(), observation)
        faulty = bool(self._clean(model, terminal, last).any())
        if faulty:
            self._note("terminal observation", np.arange(n_envs) == env_index)
            info["terminal_observation"] = map_arrays(lambda part: part[0], terminal)
        self._terminal_observations.append(terminal)
        self._truncated.append(len(self._steps) * n_envs + env_index)
        return faulty

    def _left_out(self, shape: tuple[int, int]) -> BoolArray:
        """Shape (T, N): what was noted as faulty; nothing where the buffer holds other steps than those that were."""
        noted = np.array([faulty for faulty, *_ in self._steps], dtype=bool)
        if noted.size != np.prod(shape):
            return np.zeros(shape, dtype=bool)
        return noted.reshape(shape) | (False if self._bad_rewards is None else self._bad_rewards)

    def _note(self, quantity: str, faulty: BoolArray) -> None:
        if not faulty.any():
            return
        first = not self.last_fault
        where = faulty.nonzero()[0].tolist()
        self.last_fault = f"the {quantity} was not finite, or above {LARGEST_USABLE:g}, in environment(s) {where}"
        if first:
            warnings.warn(f"{self.last_fault}: such steps are left out of training", stacklevel=2)

    @th.no_grad()
    def rollout(self, model: OnPolicyAlgorithm) -> Rollout:
        """Join what is in the model's full buffer, in the order of time, with what was recorded beside it."""
        buffer = model.rollout_buffer
        shape = buffer.buffer_size, buffer.n_envs
        is_recorded = (
            len(self._steps) == buffer.buffer_size
            and learning_data.has_stock_fields(buffer, "rewards", "episode_starts")
            and self._steps[0][0].shape == buffer.episode_starts[0].shape  # not twice the samples, say
            and np.size(buffer.rewards) == np.prod(shape)  # nor several rewards a step
        )
        # In evaluation mode, as the policy acts: what SB3 added to truncated rewards is taken off again.
        model.policy.set_training_mode(False)
        observations = as_seen(model) if is_recorded else None
        faulty = self._left_out(shape)
        if observations is None:
            self._clear()
            return unrecorded(faulty, model.gamma)
        ends, truncated = _stacked(self._terminal_observations), np.array(self._truncated, dtype=np.int64)
        end_values = self._end_values(model)
        rewards = np.array(buffer.rewards, dtype=np.float64).reshape(shape)
        rewards.reshape(-1)[truncated] -= model.gamma * end_values
        last_observations, last_dones = self._last
        _, *noted, scales = zip(*self._steps, strict=True)
        bad, stood_in = (np.concatenate(steps).reshape(shape) for steps in noted)
        of_reward = bad.copy()
        bad.reshape(-1)[truncated] = False
        if not np.any(rewards[bad] != stood_in[bad]):  # else the user has put in rewards of their own
            faulty |= of_reward
        dones = np.concatenate([buffer.episode_starts[1:], last_dones[None]]).astype(bool)
        episodes = np.array(self._episodes, dtype=np.float64).reshape(-1, 2)
        rollout = Rollout(
            observations=observations,
            last_observations=last_observations,
            terminal_observations=ends,
            truncated=truncated,
            actions=learning_data.in_time(buffer, "actions"),
            log_probs=learning_data.in_time(buffer, "log_probs"),
            rewards=rewards,
            values=learning_data.in_time(buffer, "values"),
            last_values=values_of(model.policy, obs_as_tensor(last_observations, model.device)),
            terminal_values=end_values,
            dones=dones,
            scales=np.array(scales),
            faulty=faulty,
            episode_returns=episodes[:, 0],
            episode_lengths=episodes[:, 1],
            gamma=float(model.gamma),
            is_recorded=True,
            starts_fresh=bool(np.all(buffer.episode_starts[0])),
            noise_held=noise_held(model, shape[0]),
        )
        self._clear()
        return rollout


def as_seen(model: OnPolicyAlgorithm) -> Any:
    """
    The buffer's observations as the policy saw them, (T, N, ...) or a dict of those; None where it does not tell.

    The user's buffer may store them in a form of its own: those are right by which the critic finds its values again.
    """
    buffer = model.rollout_buffer
    forms = learning_data.observations_in_time(buffer, model._last_obs)
    if len(forms) < 2:
        return forms[0] if forms else None
    some = few_of(forms[0]).numpy()
    values = learning_data.in_time(buffer, "values")[some].ravel()
    parts = [learning_data.flatten_time(take(form, some)) for form in forms]
    errors = [np.abs(values_of(model.policy, obs_as_tensor(part, model.device)) - values).sum() for part in parts]
    return forms[int(np.argmin(errors))]


def unrecorded(faulty: BoolArray, gamma: float) -> Rollout:
    """A rollout that was not collected here, or is not one sample a step: learned from, judged by nobody."""
    values: dict[str, Any] = dict.fromkeys(Rollout._fields, np.zeros(faulty.shape))
    values |= dict.fromkeys(("last_observations", "last_values"), np.zeros(faulty.shape[1]))
    values |= dict.fromkeys(("terminal_values", "episode_returns", "episode_lengths"), np.zeros(0))
    values |= {"terminal_observations": None, "truncated": np.zeros(0, dtype=np.int64), "scales": np.ones(len(faulty))}
    values |= {"dones": np.zeros_like(faulty), "faulty": faulty, "is_recorded": False, "starts_fresh": False}
    return Rollout(**values | {"gamma": float(gamma)} | Rollout._field_defaults)


class RecordingCallback(BaseCallback):
    """Lets a model's recorder see each step after the user's callback; ``screen`` is that beneath ``VecNormalize``."""

    def __init__(self, model: OnPolicyAlgorithm, callback: BaseCallback, screen: Screen | None) -> None:
        super().__init__()
        self.model, self.callback, self.screen = model, callback, screen
        self.recorder: Recorder = model.rollout_recorder  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        """Show the user's callback to who looks for it among the local variables."""
        if "callback" not in vars(self):
            raise AttributeError(name)
        return getattr(self.callback, name)

    def _on_rollout_start(self) -> None:
        self.recorder.begin(self.model)  # type: ignore[arg-type]
        with aside(self.screen):
            self.callback.on_rollout_start()
        self.recorder.random_before = None
        if hasattr(self.model, "judge"):
            self.model.judge.meet(self.model.policy)  # whoever acts from now on

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Take the local variables of ``collect_rollouts``."""
        self.locals = locals_
        self.callback.update_locals(locals_)

    def _on_step(self) -> bool:
        with aside(self.screen):
            goes_on = self.callback.on_step()  # first: what the user mends is no fault
        self.recorder.step(self.model, self.locals, self.screen)  # type: ignore[arg-type]
        return goes_on

    def _on_rollout_end(self) -> None:
        self.recorder.keep_last(self.locals)
        with aside(self.screen):
            self.callback.on_rollout_end()
        self.recorder.end(self.model, self.locals)  # type: ignore[arg-type]


def noise_held(model: OnPolicyAlgorithm, n_steps: int) -> int:
    """For how many of a rollout's steps gSDE holds its noise; without it each has its own."""
    if not model.use_sde:
        return 1
    return int(model.sde_sample_freq) if 1 <= model.sde_sample_freq < n_steps else n_steps


def reward_scale(normalizer: VecNormalize | None, rewards: FloatArray) -> float:
    """What ``VecNormalize``, if there is one, has just divided rewards by; 1 where a subclass has a way of its own."""
    if normalizer is None or not normalizer.norm_reward:
        return 1.0
    if type(normalizer).normalize_reward is not VecNormalize.normalize_reward:
        is_known = hasattr(normalizer, "ret_rms")
        if not (is_known and np.allclose(VecNormalize.normalize_reward(normalizer, normalizer.old_reward), rewards)):
            return 1.0
    return float(np.sqrt(np.mean(normalizer.ret_rms.var) + normalizer.epsilon))


def values_of(policy: BasePolicy, observations: Observations) -> FloatArray:
    """Shape (n,): values of n observations by the present critic."""
    values: FloatArray = policy.predict_values(observations).flatten().cpu().numpy()  # type: ignore[operator]
    return values


def _number(value: Any) -> float:
    """The one number that a value holds; NaN where it is none or several."""
    array = np.asarray(value)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "bfiu" else math.nan


def _stacked(parts: list[Any]) -> Any:
    """Join batches of one to a batch; None where there are none."""
    if not parts:
        return None
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)
