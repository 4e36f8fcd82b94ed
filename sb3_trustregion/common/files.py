"""Tells of a model's file whether it is damaged or another algorithm's, and what stock PPO or TRPO has learned."""

import inspect
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.utils import get_system_info

File = str | Path | BufferedIOBase

STOCK_ARGUMENTS = set(inspect.signature(PPO).parameters) | set(inspect.signature(TRPO).parameters)
# Arguments that are taken over within a family alone: they belong to its loss.
OF_THE_LOSS = {"learning_rate", "batch_size", "target_kl", "ent_coef", "vf_coef", "max_grad_norm"}
# Arguments of the run that has ended.
OF_THE_RUN = {"seed", "verbose", "tensorboard_log"}


class DamagedFileError(ValueError):
    """A file that is cut off, overwritten, or no model at all."""


def read_stock(
    path: File, device: th.device | str, custom_objects: dict[str, Any] | None, print_system_info: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Attributes, and state_dicts by name, of a stock model. Arguments are those of SB3's ``load``: what
    ``custom_objects`` replace is not unpickled. A ``ValueError`` where the file is damaged or holds no policy.
    """
    check_complete(path)
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
    data, parameters, _ = load_from_zip_file(
        path, device=device, custom_objects=custom_objects, print_system_info=print_system_info
    )
    data = data or {}
    missing = sorted({"policy_class", "observation_space", "action_space"} - data.keys())
    if missing:
        names = ", ".join(missing)
        raise ValueError(f"custom_objects must hold {names}, which cannot be read here, got {custom_objects!r}")
    kind = data["policy_class"]
    if isinstance(kind, type) and not issubclass(kind, ActorCriticPolicy):
        raise ValueError(f"path must be of a model with an ActorCriticPolicy, got one with {kind.__name__}")
    return data, dict(parameters)


def stock_arguments(data: dict[str, Any], accepted: set[str]) -> dict[str, Any]:
    """The arguments in a stock model's attributes that a constructor with these names takes in the same meaning."""
    is_ppo, is_trpo = "clip_range" in data, "cg_damping" in data
    same_loss = (is_ppo and "n_epochs" in accepted) or (is_trpo and "cg_damping" in accepted)
    names = (accepted & STOCK_ARGUMENTS & data.keys()) - OF_THE_RUN - (set() if same_loss else OF_THE_LOSS)
    if is_ppo and "clip_range" not in accepted:
        names.discard("target_kl")  # there it ends the epochs
    return {name: data[name] for name in names}


def check_file(path: File, algorithm: str, own_arguments: tuple[str, ...]) -> None:
    """Raise a ``ValueError`` where a file is damaged or another algorithm's: it lacks the class's own arguments."""
    if not check_complete(path) >= set(own_arguments):
        raise ValueError(
            f"path must name a model saved by {algorithm}, got {str(path)!r}, which is another algorithm's: "
            f"to go on from stock PPO, A2C or TRPO, call {algorithm}.from_stock(path, env)"
        )


def check_complete(path: File) -> set[str]:
    """Names of the attributes in a file; a ``ValueError`` where any of it is damaged. It is read, but not unpickled."""
    file = open_path(path, "r", suffix="zip")
    try:
        with reading(path), zipfile.ZipFile(file) as archive:
            attributes = set(json.loads(archive.read("data")))
            # A subclass that says itself what is saved may keep the judge among the attributes.
            is_judged = "radius_rule" in attributes and "judge" not in attributes
            parts = {"policy.pth", *(["judge.pth"] if is_judged else [])}
            for name in parts.union(name for name in archive.namelist() if name.endswith(".pth")):
                # read() as a whole compares the checksum, which reading in part does not.
                th.load(BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    finally:
        if file is not path:
            file.close()
    return attributes


def read_parameters(path: File, device: th.device | str) -> dict[str, Any]:
    """The state_dicts in a file by name; a ``ValueError`` where it is damaged or holds no policy."""
    check_complete(path)
    return dict(load_from_zip_file(path, device=device, load_data=False)[1])


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Tell all that goes wrong as damage of the file: not for what environments or arguments take part in."""
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:
        raise DamagedFileError(
            f"path must name a model saved by Stable-Baselines3, got {str(path)!r}, which is truncated, damaged or "
            f"wasn't a zip-file of a model ({type(error).__name__}: {error}): load an earlier checkpoint"
        ) from error
