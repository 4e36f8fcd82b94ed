"""What all three algorithms share: a recorded rollout, its appraisal by a critic, the batch of an update."""

import inspect
import warnings
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_device, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from typing_extensions import Self

from sb3_trustregion.core.divergence import check_supported
from sb3_trustregion.core.functional import ActionHead, ValueHead
from sb3_trustregion.core.improvement import alternating_signs, block_ids
from sb3_trustregion.core.parameters import ParameterVector, actor_parameters
from sb3_trustregion.core.rollouts import (
    WEIGHT_CLIP,
    Appraisal,
    FloatArray,
    Normalizer,
    ObsArray,
    Rollout,
    ValueFunction,
    advantages,
    appraise,
    flatten_time,
    stack_observations,
)
from sb3_trustregion.core.search import StepStatus
from sb3_trustregion.core.surrogate import Batch
from sb3_trustregion.guard import LARGEST, GuardedVecEnv
from sb3_trustregion.recorder import RolloutRecorder, snapshot_normalizer
from sb3_trustregion.stock import StockModel, check_file, damage_told, read_parameters
from sb3_trustregion.validation import check_bool, check_integer, check_number, check_schedule

# From so many updates in a row without a usable step on, the user is told; from so many on, training ends.
WARN_AFTER = 3
STOP_AFTER = 10
# Their distributions are not of an observation alone.
WITH_MEMORY = RecurrentActorCriticPolicy


class UnusableDataError(ValueError):
    """Nothing can be learned from what the environment returns. A ``ValueError``: the Zoo's search prunes on those."""


class LearningData(NamedTuple):
    """
    One rollout ready to learn from.

    :param observations: (T·N, ...), as the policy takes them
    :param rollout: the rollout
    :param residuals: shape (T, N), TD residuals of the present critic
    :param ratios: shape (T, N), π_k/β
    :param advantages: shape (T, N), Â
    :param returns: shape (T, N), targets of the critic
    :param values: shape (T, N), V(s)
    """

    observations: ObsArray
    rollout: Rollout
    residuals: FloatArray
    ratios: FloatArray
    advantages: FloatArray
    returns: FloatArray
    values: FloatArray


class RecordingAlgorithm(OnPolicyAlgorithm):
    """An on-policy algorithm that keeps each rollout in the order of time and knows which parameters act."""

    recorder: RolloutRecorder
    actor: ParameterVector
    guard: GuardedVecEnv | None
    # Arguments that together tell this algorithm's files from others'.
    _own_arguments: ClassVar[tuple[str, ...]]
    # Steps never taken: plain numbers, saved with the model.
    n_invalid: int = 0
    n_invalid_in_a_row: int = 0
    # Transitions left out because they were not finite.
    n_faulty_steps: int = 0

    def _validate(self) -> None:
        """
        :raises ValueError: naming the argument that is out of range, the constraint and the value
        """
        check_schedule("learning_rate", self.learning_rate, at_least=0.0)
        check_integer("n_steps", self.n_steps, at_least=1)
        check_integer("batch_size", self.batch_size, at_least=1)  # type: ignore[attr-defined]
        check_number("gamma", self.gamma, at_least=0.0, at_most=1.0)
        check_number("gae_lambda", self.gae_lambda, at_least=0.0, at_most=1.0)
        check_bool("use_sde", self.use_sde)
        check_integer("sde_sample_freq", self.sde_sample_freq, at_least=-1)
        check_integer("stats_window_size", self._stats_window_size, at_least=1)
        if self.seed is not None:
            check_integer("seed", self.seed, at_least=0)
        if self.n_steps * self.n_envs < 2:
            raise ValueError(f"n_steps * n_envs must be >= 2, got {self.n_steps} * {self.n_envs}")

    def _setup_model(self) -> None:
        self._validate()
        if not issubclass(self.policy_class, ActorCriticPolicy) or issubclass(self.policy_class, WITH_MEMORY):
            raise ValueError(f"policy must be an ActorCriticPolicy without memory, got {self.policy_class.__name__}")
        self.recorder = RolloutRecorder()
        self.guard = None
        super()._setup_model()
        # Evaluation mode: the policy as it acts. Batch normalisation refuses a single sample otherwise.
        self.policy.set_training_mode(False)
        check_supported(self.policy.action_dist)
        sample = self.policy.obs_to_tensor(self.observation_space.sample())[0]
        self.actor = actor_parameters(self.policy, sample)

    @classmethod
    def load(
        cls,
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """
        Load the model from a file, as in SB3, with an error that says what to do where the file is not fit for it.

        :param path: the file that ``save`` wrote, or a file-like
        :param env: the environment to go on in; None where only predictions are wanted
        :param device: device on which the code should run
        :param custom_objects: objects that replace those in the file
        :param print_system_info: whether to print information on the system that saved it and on this one
        :param force_reset: whether the environment is reset before training
        :param kwargs: arguments of the constructor, which win over the file's
        :return: the model
        :raises ValueError: where the file is truncated, empty, damaged or another algorithm's
        """
        check_file(path, cls.__name__, cls._own_arguments)
        with damage_told(path):
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters as in SB3.

        :param load_path_or_dict: a file, or a dictionary of state_dicts
        :param exact_match: whether all of a module's parameters must be given
        :param device: device on which the code should run
        :raises ValueError: where the file is damaged, or the parameters are others'
        """
        is_file = not isinstance(load_path_or_dict, dict)
        parameters = read_parameters(load_path_or_dict, get_device(device)) if is_file else load_path_or_dict
        super().set_parameters(parameters, exact_match, device)

    @classmethod
    def from_stock(cls, path: str | Path, env: GymEnv | str, device: th.device | str = "auto", **kwargs: Any) -> Self:
        """
        Go on from an agent that stock PPO, A2C or TRPO has trained: its policy, its critic, its settings.

        Settings that keep their meaning are taken over; ``target_kl`` of TRPO is converted to the joint action
        distribution. The optimiser's state is taken over from PPO to ``AdaptivePPO`` alone: elsewhere it
        belonged to another loss. For ``VecNormalize``, hand over an ``env`` with the saved statistics.

        :param path: the file that ``save`` wrote
        :param env: the environment to go on in
        :param device: device on which the code should run
        :param kwargs: arguments of the constructor, which win over the file's
        :return: a new model
        :raises ValueError: where the file holds no actor-critic policy
        """
        stock = StockModel(path, get_device(device))
        accepted = set(inspect.signature(cls).parameters)
        arguments = {"policy": stock.data["policy_class"], **stock.arguments(accepted), **kwargs}
        model = cls(env=env, device=device, **arguments)
        model.policy.load_state_dict(stock.parameters["policy"])
        if stock.is_ppo and "clip_range" in accepted:
            model.policy.optimizer.load_state_dict(stock.parameters["policy.optimizer"])
        return model

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "recorder", "actor", "guard"]

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if callback is None:
            return super()._init_callback(self.recorder, progress_bar)
        if isinstance(callback, list):
            callback = CallbackList(callback)
        elif not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        return super()._init_callback(CallbackList([self.recorder, callback]), progress_bar)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        guard = self._guarded()
        if reset_num_timesteps or self._last_obs is None:
            guard.forget()
        with guard.screened():  # the environments are reset here, perhaps
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _guarded(self) -> GuardedVecEnv:
        """The training environment without what is not finite."""
        assert self.env is not None, "learn() needs an environment: call set_env()"
        if self.guard is None or self.guard.venv is not self.env:
            self.guard = GuardedVecEnv(self.env)
        return self.guard

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect as in SB3, from an environment that hands on nothing that is not finite.

        :param env: the training environment
        :param callback: called at every step
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: number of steps per environment
        :return: False if a callback ended training
        """
        self.recorder.guard = guard = self._guarded()
        assert self._last_obs is not None
        self._last_obs = guard.cleaned_first(self._last_obs)  # type: ignore[assignment]
        return super().collect_rollouts(guard, callback, rollout_buffer, n_rollout_steps)

    def _take_rollout(self) -> Rollout:
        """
        :return: the rollout that ``learn`` has just collected
        :raises RuntimeError: where there is none
        """
        rollout = self.recorder.take()
        if rollout is None:
            raise RuntimeError("train() found no recorded rollout: call learn(), which records what train() needs")
        self.n_faulty_steps += int(np.isnan(rollout.rewards).sum())
        return rollout

    def _fault(self) -> str:
        """Why a batch holds no usable sample."""
        return (self.guard.last_fault if self.guard else "") or "no advantage is finite"

    def _accept_data(self) -> None:
        self.n_invalid_in_a_row = 0

    def _refuse_data(self, reason: str, lasting: bool) -> None:
        """
        Count an update without a step, tell the user in time, end a training that cannot learn.

        :param reason: what was wrong
        :param lasting: whether training ends if this goes on: not for a mere lack of improvement
        :raises UnusableDataError: after ``STOP_AFTER`` lasting faults in a row; the last good policy is in place
        """
        self.n_invalid += 1
        self.n_invalid_in_a_row += 1
        if self.n_invalid_in_a_row == WARN_AFTER:
            warnings.warn(f"{WARN_AFTER} updates without a policy step in a row, now because {reason}", stacklevel=3)
        if lasting and self.n_invalid_in_a_row >= STOP_AFTER:
            raise UnusableDataError(
                f"{self.n_invalid_in_a_row} updates in a row could not be used, the last because {reason}. "
                "The policy is the last good one and can be saved."
            )

    def _record_status(self, status: StepStatus) -> None:
        self.logger.record("train/step_status", status.value)
        self.logger.record("train/n_invalid", self.n_invalid)
        self.logger.record("train/n_faulty_steps", self.n_faulty_steps)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Train, as in SB3.

        :param total_timesteps: the total number of samples (env steps) to train on, a lower bound
        :param callback: callback(s) called at every step with state of the algorithm
        :param log_interval: the number of updates between two logs
        :param tb_log_name: the name of the run for TensorBoard; None for that of the class
        :param reset_num_timesteps: whether to start anew, resetting the environments, or to go on
        :param progress_bar: whether to display a progress bar
        :return: the trained model
        """
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name or type(self).__name__,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    @property
    def _has_own_estimator(self) -> bool:
        """Whether the user's rollout buffer estimates advantages its own way."""
        buffer_class = type(self.rollout_buffer)
        ours = (RolloutBuffer.compute_returns_and_advantage, DictRolloutBuffer.compute_returns_and_advantage)
        return buffer_class.compute_returns_and_advantage not in ours

    def _snapshot_normalizer(self) -> Normalizer:
        assert self.env is not None
        return snapshot_normalizer(self.env)

    def _value_function(self, parameters: Mapping[str, th.Tensor] | None = None) -> ValueFunction:
        """
        :param parameters: state_dict of an earlier policy; None for the present one
        :return: its critic
        """
        head = ValueHead(self.policy)

        @th.no_grad()
        def value_of(observations: ObsArray) -> FloatArray:
            tensors = obs_as_tensor(observations, self.device)
            values: th.Tensor = head.at(parameters or {}, tensors)
            return values.cpu().numpy()

        return value_of

    def _appraise(self, rollout: Rollout, normalizer: Normalizer) -> Appraisal:
        return appraise(rollout, self._value_function(), normalizer, self.gamma)

    def _newest(self, rollout: Rollout, normalizer: Normalizer) -> LearningData:
        """The rollout of the present policy: observations as it saw them, advantages in frozen units."""
        buffer = self.rollout_buffer
        values, residuals = self._appraise(rollout, normalizer)
        if self._has_own_estimator:
            estimated, returns = np.array(buffer.advantages), np.array(buffer.returns)
        else:
            estimated = advantages(residuals, rollout.dones, self.gamma, self.gae_lambda)
            returns = estimated + values
        ones = np.ones(rollout.shape)
        return LearningData(flatten_time(buffer.observations), rollout, residuals, ones, estimated, returns, values)

    def _reused(self, rollout: Rollout, normalizer: Normalizer) -> LearningData:
        """A rollout of any earlier policy, seen by the present critic and policy in present units."""
        observations = flatten_time(normalizer.observations(rollout.observations))
        values, residuals = self._appraise(rollout, normalizer)
        with th.no_grad():
            log_probs, _ = ActionHead(self.policy)(
                obs_as_tensor(observations, self.device),
                self._as_actions(rollout.actions),
            )
        ratios = np.exp(log_probs.cpu().numpy().astype(np.float64).reshape(rollout.shape) - rollout.log_probs)
        estimated = advantages(residuals, rollout.dones, self.gamma, self.gae_lambda, ratios)
        returns = values + np.minimum(ratios, 1.0) * estimated
        return LearningData(observations, rollout, residuals, ratios, estimated, returns, values)

    def _as_actions(self, actions: FloatArray) -> th.Tensor:
        """(T, N, A) to what ``Distribution.log_prob`` takes."""
        flat = th.as_tensor(actions.reshape(-1, actions.shape[-1]), device=self.device)
        return flat.long().flatten() if isinstance(self.action_space, spaces.Discrete) else flat

    def _make_batch(self, parts: list[LearningData]) -> Batch:
        """
        :param parts: rollouts, oldest first
        :return: one batch over all of them, without samples that are not finite
        """
        shapes = [part.rollout.shape for part in parts]
        blocks = [block_ids(*shape).ravel() for shape in shapes]
        first_ids = np.cumsum([0, *(ids.max() + 1 for ids in blocks)])
        ratios = _joined([part.ratios for part in parts])
        batch = Batch(
            observations=obs_as_tensor(stack_observations([part.observations for part in parts]), self.device),
            actions=th.cat([self._as_actions(part.rollout.actions) for part in parts]),
            log_probs=self._tensor(_joined([part.rollout.log_probs for part in parts])),
            weights=self._tensor(np.minimum(ratios, WEIGHT_CLIP)),
            advantages=self._tensor(_joined([part.advantages for part in parts])),
            returns=self._tensor(_joined([part.returns for part in parts])),
            signs=self._tensor(_joined([alternating_signs(*shape) for shape in shapes])),
            blocks=np.concatenate([ids + first for ids, first in zip(blocks, first_ids, strict=False)]),
            reused=len(parts) > 1,
        )
        usable = usable_samples(batch)
        return batch if bool(usable.all()) else batch.select(usable.nonzero().flatten())

    def _tensor(self, array: FloatArray) -> th.Tensor:
        return th.as_tensor(array, dtype=th.float32, device=self.device)


def usable_samples(batch: Batch) -> th.Tensor:
    """
    :param batch: the data
    :return: shape (n,), whether all of a sample is finite, squares included
    """
    usable = (th.stack([*batch[2:6]]).abs() < LARGEST).all(dim=0)
    observations = batch.observations
    for value in observations.values() if isinstance(observations, dict) else (observations,):
        if value.is_floating_point():
            usable &= (value.flatten(start_dim=1).abs() < LARGEST).all(dim=1)
    return usable


def centred(batch: Batch, scale: bool) -> Batch:
    """
    :param batch: the data
    :param scale: whether advantages are brought to unit variance too
    :return: the same with advantages of weighted mean zero
    """
    weights = batch.weights / batch.weights.sum()
    shifted = batch.advantages - (weights * batch.advantages).sum()
    if scale:
        shifted = shifted / (th.sqrt((weights * shifted**2).sum()) + 1e-8)
    return batch._replace(advantages=shifted)


def _joined(arrays: list[FloatArray]) -> Any:
    return np.concatenate([array.ravel() for array in arrays])
