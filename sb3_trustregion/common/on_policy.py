"""What all our algorithms override of Stable-Baselines3: set-up, collect, learn, save, load."""

import math
import warnings
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces, get_device
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _convert_space
from typing_extensions import Self

from sb3_trustregion.common.files import check_file, read_parameters, read_stock, stock_arguments
from sb3_trustregion.common.guard import aside, screened
from sb3_trustregion.common.judge import Judge
from sb3_trustregion.common.learning_data import Rollout, as_advantages_say, flatten_as_get
from sb3_trustregion.common.random_states import random_states
from sb3_trustregion.common.recorder import Recorder, RecordingCallback
from sb3_trustregion.common.validation import argument_names, as_schedule, check_sizes, settle_on_policy
from sb3_trustregion.core.batch import Batch, few_of
from sb3_trustregion.core.distributions import check_supported, in_double, preserved_distribution
from sb3_trustregion.core.functional import uncompiled
from sb3_trustregion.core.parameters import ParameterVector, actor_parameters, out_of_reach

# log σ over half of what an action may range over, where the user chooses none: with SB3's σ = 1 the first actions are
# mostly cut at bounds of ±1. ±100 and more stand for no bounds: simulators put them in, whose actions are of order 1.
LOG_STD_INIT, WIDEST = -0.5, 1e2
Part = TypeVar("Part")


class MadeWhenAsked(Generic[Part]):
    """A part that a model makes when it is asked for: ``_setup_model`` may be the user's own."""

    def __init__(self, make: Callable[[Any], Part]) -> None:
        self.make = make

    def __set_name__(self, _owner: type[Any], name: str) -> None:
        self.name = name

    def __get__(self, model: Any, _owner: Any = None) -> Part:
        """Unlike ``functools.cached_property``, without a lock: classes may be pickled by value."""
        if model is None:
            return self  # type: ignore[return-value]
        if self.name not in vars(model):
            setattr(model, self.name, self.make(model))
        made: Part = vars(model)[self.name]
        return made


class TrustRegionOnPolicyAlgorithm(OnPolicyAlgorithm):
    """An on-policy algorithm that learns from SB3's buffer and keeps beside it what judging a step needs."""

    rollout_recorder = MadeWhenAsked(lambda _: Recorder())
    # Only of algorithms that judge their steps.
    judge: Judge
    # Arguments that together tell this algorithm's files from others'.
    _own_arguments: ClassVar[tuple[str, ...]]
    # What the radius starts from, where there is one that ``radius_prior`` draws to itself.
    _radius_argument: ClassVar[str] = ""
    # Of a policy for which ``policy_kwargs`` has none; None goes by the bounds of the actions.
    _log_std_init: ClassVar[float | None] = 0.0
    # Whether an update needs the KL and the Fisher matrix of the action distribution.
    _needs_distribution: ClassVar[bool] = True
    _heed_arguments: Callable[[], None]  # hands on what the user has set since
    batch_size: int
    normalize_advantage: bool
    # Steps never taken, and transitions left out because they were not finite: plain numbers, saved with the model.
    n_invalid: int = 0
    n_invalid_in_a_row: int = 0
    n_faulty_steps: int = 0

    def _check_arguments(self) -> None:
        """Check the arguments; a ``ValueError`` names the one that is out of range, the constraint and the value."""
        settle_on_policy(self)

    def _setup_model(self) -> None:
        self._check_arguments()
        if self.num_timesteps == 0:
            check_sizes(self)
        # A function that makes one will do. Distributions of policies with memory are not of an observation alone.
        made = self.policy_class if isinstance(self.policy_class, type) else ActorCriticPolicy
        is_recurrent = issubclass(made, RecurrentActorCriticPolicy)
        if not callable(self.policy_class) or not issubclass(made, ActorCriticPolicy) or is_recurrent:
            name = getattr(self.policy_class, "__name__", repr(self.policy_class))
            raise ValueError(f"policy must be an ActorCriticPolicy without memory, got {name}")
        given = self.policy_kwargs or {}  # a log σ of None is ours: SB3's policies take numbers
        self.policy_kwargs = {key: given[key] for key in given if key != "log_std_init" or given[key] is not None}
        super()._setup_model()
        self.policy_kwargs = given
        if given.get("log_std_init", self._log_std_init) is None:
            start_less_noisy(self.policy)
        if self._needs_distribution:
            check_supported(self.policy.action_dist)
        if hasattr(type(self), "judge"):
            self.judge.forget()  # made now, so that its arguments are checked

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
        Load the model from a file: as in SB3, whose arguments these are; those of the constructor win over the file's.

        :raises ValueError: where the file is truncated, empty, damaged or another algorithm's: it says what to do
        """
        check_file(path, cls.__name__, cls._own_arguments)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters as in SB3, whose arguments these are.

        :raises ValueError: where the file is damaged, or the parameters are others'
        """
        is_file = not isinstance(load_path_or_dict, dict)
        parameters = read_parameters(load_path_or_dict, get_device(device)) if is_file else load_path_or_dict
        is_judged = "judge" in self._get_torch_save_params()[0]
        if is_judged and (is_file or {"policy", "policy.optimizer"} <= parameters.keys()):  # as they are of stock
            parameters = {"judge": self.judge.state_dict(), **parameters}
        super().set_parameters(parameters, exact_match, device)

    @classmethod
    def from_stock(
        cls,
        path: str | Path | BufferedIOBase,
        env: GymEnv | str,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        Go on from an agent that stock PPO, A2C or TRPO has trained: its policy, its critic, its settings.

        Settings that keep their meaning are taken over, the optimiser's state from PPO to ``AdaptivePPO`` and
        ``PenaltyPPO`` alone: else it was of another loss. For ``VecNormalize``, ``env`` must have the saved statistics.

        :param path: the file that ``save`` wrote, or a file-like
        :param env: the environment to go on in
        :param device: device on which the code should run
        :param custom_objects: objects that replace those in the file, as in ``load``
        :param print_system_info: whether to print information on the system that saved it and on this one
        :param kwargs: arguments of the constructor, which win over the file's
        :return: a new model
        :raises ValueError: where the file holds no actor-critic policy, or its spaces are not those of ``env``
        """
        data, parameters = read_stock(path, get_device(device), custom_objects, print_system_info)
        accepted = argument_names(cls)
        arguments = {"policy": data["policy_class"], **stock_arguments(data, accepted), **kwargs}
        start = arguments.get(cls._radius_argument)
        if start is not None and 0.0 < as_schedule(start)(1.0) < math.inf:
            arguments.setdefault("radius_prior", as_schedule(start)(1.0))  # what was chosen is where it is to stay
        env = cls._wrap_env(maybe_make_env(env, 0))
        check_for_correct_spaces(env, *(_convert_space(data[name]) for name in ("observation_space", "action_space")))
        model = cls(env=env, device=device, **arguments)
        model.policy.load_state_dict(parameters["policy"])
        if "clip_range" in data and "n_epochs" in accepted:  # PPO's loss here as there
            model.policy.optimizer.load_state_dict(parameters["policy.optimizer"])
        return model

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rollout_recorder"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*(["judge"] if hasattr(self, "judge") else []), *state_dicts], tensors

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Set the environment as in SB3; a step pending in another environment is dropped, not misjudged."""
        super().set_env(env, force_reset)
        self.rollout_recorder = Recorder()
        if hasattr(self, "judge"):
            self.judge.forget()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        assert self.env is not None, "learn() needs an environment: call set_env()"
        check_sizes(self)
        with screened(self.env) as screen:  # the environments are reset here, perhaps
            before, self.rollout_recorder.screen = self._last_obs, screen
            try:
                result = super()._setup_learn(*args, **kwargs)
            finally:
                self.rollout_recorder.screen = None
            if self._last_obs is not before:
                self.rollout_recorder.start(self.n_envs, screen)
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        with aside(self.rollout_recorder.screen):
            return super()._init_callback(callback, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect as in SB3, whose arguments these are; nothing that is not finite goes into the policy."""
        if rollout_buffer is not self.rollout_buffer:  # the user's own rollout, which nothing is learned from
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        heed_new_extractor(self.policy)
        self.rollout_recorder.random_before = random_states() if self.use_sde else None
        with screened(env) as screen:
            recording = RecordingCallback(self, callback, screen)
            self.rollout_recorder.goes_on = super().collect_rollouts(env, recording, rollout_buffer, n_rollout_steps)
        return self.rollout_recorder.goes_on

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train, as in SB3, whose arguments these are; the name of the run for TensorBoard is that of the class."""
        name, self.rollout_recorder.goes_on = tb_log_name or type(self).__name__, False  # where nothing is collected
        super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
        if self.rollout_recorder.goes_on:  # an update was the last: as stock leaves it, nothing is folded away
            self.policy.set_training_mode(True)
        return self


def heed_new_extractor(policy: ActorCriticPolicy) -> None:
    """Where the user has replaced a shared features extractor by the name that acts, have SB3's other names follow."""
    policy = uncompiled(policy)
    if not getattr(policy, "share_features_extractor", False):
        return
    parts: list[Any] = [getattr(policy, f"{name}features_extractor", None) for name in ("", "pi_", "vf_")]
    acts, of_actor, of_critic = (getattr(part, "_orig_mod", part) for part in parts)
    if acts is not None and acts is not of_actor and of_actor is of_critic:
        warnings.warn("policy.features_extractor was replaced: so are its other names, pi_ and vf_", stacklevel=3)
        policy.pi_features_extractor = policy.vf_features_extractor = parts[0]


def begin_update(model: TrustRegionOnPolicyAlgorithm) -> Rollout:
    """Heed what the user has set since the last update; return what the buffer holds, in the order of time."""
    model._heed_arguments()
    flatten_as_get(model.rollout_buffer)
    rollout = model.rollout_recorder.rollout(model)
    model.n_faulty_steps += int(np.sum(rollout.faulty))
    return as_advantages_say(rollout, model.rollout_buffer) if hasattr(model, "judge") else rollout


def find_actor(policy: ActorCriticPolicy, batch: Batch, with_others: bool = False) -> ParameterVector:
    """Find which parameters act, as of this update; a ``RuntimeError`` where one is out of a trial point's reach."""
    policy = uncompiled(policy)
    beyond = out_of_reach(policy, batch)
    if any(beyond) or (beyond and with_others):
        names = ", ".join(name or "a parameter of others" for name in beyond)
        raise RuntimeError(f"policy must act by what its modules hold when they are called, not by references: {names}")
    return actor_parameters(policy, batch.observations)


@th.no_grad()
def start_less_noisy(policy: ActorCriticPolicy) -> None:
    """Set by the bounds the initial σ of a plain Gaussian policy that was left at SB3's 1, and is not to stay there."""
    log_std = getattr(policy, "log_std", None)
    if log_std is None or type(policy.action_dist) is not DiagGaussianDistribution:
        return
    is_used = is_stock_way(policy, "_get_action_dist_from_latent")
    if is_used and log_std.requires_grad and not log_std.any():
        box: Any = policy.action_space
        half = (box.high.astype(np.float64) / 2.0 - box.low.astype(np.float64) / 2.0).ravel()
        bounded = (half > 0.0) & (half < WIDEST)
        wanted = th.as_tensor(LOG_STD_INIT + np.log(np.where(bounded, half, 1.0)))
        log_std.copy_(wanted if wanted.shape == log_std.shape else wanted.mean())  # one for all dimensions
        policy.log_std_init = LOG_STD_INIT


def is_stock_way(policy: ActorCriticPolicy, way: str) -> bool:
    """Whether a method of a policy, by its name, is SB3's."""
    return bool(getattr(policy, way, None) == getattr(ActorCriticPolicy, way).__get__(policy))


def tells_what_acts(policy: ActorCriticPolicy, batch: Batch) -> bool:
    """Whether ``get_distribution`` gives what ``evaluate_actions`` evaluates, which is all that PPO uses."""
    policy, few = uncompiled(policy), batch.select(few_of(batch.observations))
    is_stock = {way: is_stock_way(policy, way) for way in ("evaluate_actions", "extract_features", "get_distribution")}
    if is_stock["get_distribution"] and not is_stock["extract_features"]:
        return False  # SB3's asks past what the user has overridden
    if all(is_stock.values()) and type(policy.mlp_extractor) is MlpExtractor:
        return True
    with preserved_distribution(policy), th.random.fork_rng(devices=[]), th.enable_grad():
        random_state = th.get_rng_state()
        _, evaluated, _ = policy.evaluate_actions(few.observations, few.actions)
        th.set_rng_state(random_state)  # what is random in it is to be so twice
        try:
            by_distribution = policy.get_distribution(few.observations).log_prob(few.actions)
        except Exception:  # whatever the user's way is to have none
            return False
    one, other = (in_double(log_prob.detach()).flatten() for log_prob in (by_distribution, evaluated))
    is_same = one.shape == other.shape and th.isclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True).all()
    return bool(is_same) and by_distribution.requires_grad == evaluated.requires_grad
