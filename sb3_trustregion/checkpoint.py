"""
Checkpoints that a killed process cannot spoil, and the one call that goes on from them.

A checkpoint is an ordinary SB3 file, which ``load`` takes as well, with one member more: the statistics of
``VecNormalize``, the states of all random-number generators and the seed that the environments go on with. It is
written beside its place, synced and renamed, so that a file of its name is always complete.
"""

import os
import re
import warnings
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, EventCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_trustregion.common.files import DamagedFileError, check_complete, reading
from sb3_trustregion.common.random_states import random_states, set_random_states
from sb3_trustregion.common.validation import check_integer

Model = TypeVar("Model", bound=BaseAlgorithm)
AnyPath = str | os.PathLike[str]

# Not .pth: SB3 would take it for a module's state_dict.
MEMBER = "training_state.bin"
TEMPORARY = ".partial"


class ResumableCheckpointCallback(BaseCallback):
    """
    Write a complete checkpoint every so many steps, at the start of a rollout, and at the end; keep the last few.

    A write that fails (a full disk) is told in a warning; the checkpoints before it stay, and training goes on.

    :param save_freq: number of environment steps, over all environments, between two checkpoints
    :param save_path: folder of the checkpoints
    :param name_prefix: their names are ``{name_prefix}_{steps}_steps.zip``
    :param keep: how many are kept
    :param verbose: verbosity level: 0 for no output, 1 to tell of each checkpoint
    :raises ValueError: where an argument is out of range, or the callback is within SB3's ``EventCallback``
    """

    def __init__(
        self, save_freq: int, save_path: AnyPath, name_prefix: str = "checkpoint", keep: int = 3, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.save_freq = check_integer("save_freq", save_freq, at_least=1)
        self.save_path = Path(save_path).absolute()
        self.name_prefix = name_prefix
        if Path(name_prefix).name != name_prefix:
            raise ValueError(f"name_prefix must be a file's name, got {name_prefix!r}: folders go into save_path")
        self.keep = check_integer("keep", keep, at_least=1)
        self._last_saved = 0

    def _init_callback(self) -> None:
        if isinstance(self.parent, EventCallback):
            where = type(self.parent).__name__
            raise ValueError(f"callback must not be within {where}, which does not tell when a rollout starts")
        self.save_path.mkdir(parents=True, exist_ok=True)
        for partial in self.save_path.glob(f"*{TEMPORARY}"):
            if steps_of(partial.with_suffix(""), self.name_prefix) >= 0:
                partial.unlink(missing_ok=True)
        self._last_saved = self.model.num_timesteps
        later = self._kept(later=True)
        if later:
            warnings.warn(
                f"{self.save_path} holds checkpoints of a longer run ({later[-1].name}), which `resume` takes where "
                "they are complete: resume from them, or choose another save_path or name_prefix",
                stacklevel=2,
            )

    def _kept(self, later: bool = False) -> list[Path]:
        """Checkpoints of this run so far, or of a longer one in the same folder."""
        now = self.model.num_timesteps
        paths = checkpoints(self.save_path, self.name_prefix)
        return [path for path in paths if (steps_of(path, self.name_prefix) > now) == later]

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._last_saved >= self.save_freq:
            self._save()

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._last_saved:
            self._save()

    def _save(self) -> None:
        path = self.save_path / f"{self.name_prefix}_{self.model.num_timesteps}_steps.zip"
        try:
            self.save_path.mkdir(parents=True, exist_ok=True)  # somebody may have cleared up meanwhile
            save_checkpoint(self.model, path)
        except OSError as error:
            warnings.warn(f"{path} could not be written ({error}): the checkpoints before it stay", stacklevel=2)
            return
        self._last_saved = self.model.num_timesteps
        for old in self._kept()[: -self.keep]:
            old.unlink(missing_ok=True)
        if self.verbose >= 1:
            print(f"Saved {path}")

    def _on_step(self) -> bool:
        return True


def save_checkpoint(model: BaseAlgorithm, path: AnyPath) -> None:
    """
    Write a complete checkpoint, or nothing at all.

    :param model: the model, between two updates
    :param path: where the checkpoint goes; what is there is replaced once the new one is complete
    :raises OSError: where it cannot be written; what was there before is untouched
    """
    path = Path(path)
    partial = path.with_name(path.name + TEMPORARY)
    try:
        with partial.open("w+b") as file:
            model.save(file)
            with zipfile.ZipFile(file, "a") as archive, archive.open(MEMBER, "w", force_zip64=True) as member:
                th.save(training_state(model), member)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def checkpoints(folder: AnyPath, name_prefix: str = "checkpoint") -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    by_steps = [(steps_of(path, name_prefix), path) for path in Path(folder).glob("*.zip") if path.is_file()]
    return [path for steps, path in sorted(by_steps) if steps >= 0]


def steps_of(path: Path, name_prefix: str = "checkpoint") -> int:
    """At how many steps a checkpoint was written, by its name; -1 where that is none of a checkpoint."""
    match = re.fullmatch(re.escape(name_prefix) + r"_(\d+)_steps\.zip", path.name)
    return int(match[1]) if match else -1


def resume(
    algorithm: type[Model], path: AnyPath, env: GymEnv | str, name_prefix: str = "checkpoint", **kwargs: Any
) -> Model:
    """
    Go on from a checkpoint: model, radius, normalisation statistics, random numbers.

    The environments themselves cannot be saved: they are seeded from the checkpoint and reset, so that the run equals
    one that did so at that point (see ``restart_environments``). Then
    ``model.learn(remaining, reset_num_timesteps=False)``.

    :param algorithm: its class, such as ``AdaptiveTRPO``
    :param path: a checkpoint, or a folder, of which the newest one that is complete is taken: those that are damaged
        are told in warnings, any other fault is an error
    :param env: the environment, wrapped as it was: with a fresh ``VecNormalize`` if there was one
    :param name_prefix: of the checkpoints in the folder
    :param kwargs: further arguments of ``algorithm.load``
    :return: the model
    :raises ValueError: where there is no checkpoint, or none that is complete; where env or arguments do not fit it
    """
    path = Path(path)
    files = [file for file in (path, Path(f"{path}.zip")) if file.is_file()]
    candidates = checkpoints(path, name_prefix)[::-1] if path.is_dir() else files[:1]
    for candidate in candidates:
        try:
            state = _read_state(candidate)
        except DamagedFileError as error:
            if not path.is_dir():
                raise
            warnings.warn(f"{error}; trying the one before it", stacklevel=2)
            continue
        return _resumed(algorithm, candidate, state, maybe_make_env(env, 0), kwargs)
    raise ValueError(f"path must hold a complete checkpoint named {name_prefix}_*_steps.zip, got {str(path)!r}")


def _resumed(algorithm: type[Model], path: Path, state: dict[str, Any], env: GymEnv, kwargs: dict[str, Any]) -> Model:
    """Restore all of it, or, where an error is raised, leave statistics and random numbers as they were."""
    before = random_states()
    try:
        model = algorithm.load(path, env=env, **kwargs)
        statistics, moments = _statistics(model), state["vec_normalize"]
        _check_statistics(statistics, moments)
        restart_environments(model, int(state["environment_seed"]))
        set_random_states(state["random"])
    except BaseException:
        set_random_states(before)
        raise
    for name, part in statistics.items():
        mean, var, count = moments[name]
        part.mean, part.var, part.count = mean.numpy().copy(), var.numpy().copy(), float(count)
    return model


def restart_environments(model: BaseAlgorithm, seed: int) -> None:
    """Seed the training environments and have them reset before the next step."""
    assert model.env is not None
    try:
        model.env.seed(seed)
    except (AttributeError, NotImplementedError) as error:
        warnings.warn(f"env cannot be seeded, and goes on with random numbers of its own ({error!r})", stacklevel=3)
    model._last_obs = None


def training_state(model: BaseAlgorithm) -> dict[str, Any]:
    """What the model itself does not save, in tensors and plain numbers."""
    # Drawn from the step count, not from a generator: saving must not change what comes after.
    environment_seed = ((model.seed or 0) * 1_000_003 + model.num_timesteps) % 2**31
    statistics = _statistics(model).items()
    return {
        "environment_seed": environment_seed,
        "vec_normalize": {name: [th.as_tensor(p.mean), th.as_tensor(p.var), float(p.count)] for name, p in statistics},
        "random": getattr(getattr(model, "rollout_recorder", None), "random_before", None) or random_states(),
    }


def _read_state(path: Path) -> dict[str, Any]:
    """Read what ``training_state`` told from a checkpoint that is complete."""
    check_complete(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise DamagedFileError(f"{path} is not a complete checkpoint: it lacks the training state")
        state: dict[str, Any] = th.load(BytesIO(archive.read(MEMBER)), map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("environment_seed", "vec_normalize", "random")}


def _statistics(model: BaseAlgorithm) -> dict[str, RunningMeanStd]:
    """By name what every ``VecNormalize`` around the environments goes by, from the outermost in."""
    found: dict[str, RunningMeanStd] = {}
    normalizer, depth = model.get_vec_normalize_env(), 0
    while normalizer is not None:
        rms = normalizer.obs_rms if normalizer.norm_obs else {}
        parts = rms if isinstance(rms, dict) else {"": rms}
        found |= {f"{depth} observations {key}".rstrip(): part for key, part in parts.items()}
        found[f"{depth} returns"] = normalizer.ret_rms
        normalizer, depth = unwrap_vec_normalize(normalizer.venv), depth + 1
    return found


def _check_statistics(present: dict[str, RunningMeanStd], saved: dict[str, list[Any]]) -> None:
    shapes = {name: tuple(part.mean.shape) for name, part in present.items()}
    saved_shapes = {name: tuple(mean.shape) for name, (mean, *_) in saved.items()}
    if shapes != saved_shapes:
        raise ValueError(f"env must be wrapped in VecNormalize as it was, {saved_shapes}, got {shapes}")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself outlast a power cut, where the system knows how."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # not every file system does
            descriptor = os.open(folder, os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
