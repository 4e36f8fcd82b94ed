"""Files that models were saved in: what stock PPO or TRPO has learned, what is damaged, what is another's."""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_trustregion.core.divergence import averaged_dimensions

# Arguments that mean the same wherever they appear.
SHARED = ("n_steps", "gamma", "gae_lambda", "use_sde", "sde_sample_freq", "policy_kwargs", "normalize_advantage")
FROM_PPO = (
    "learning_rate", "batch_size", "n_epochs", "clip_range", "clip_range_vf", "ent_coef", "vf_coef", "max_grad_norm",
    "target_kl",
)  # fmt: skip
FROM_TRPO = (
    "learning_rate", "batch_size", "cg_max_steps", "cg_damping", "line_search_shrinking_factor",
    "line_search_max_iter", "n_critic_updates", "target_kl", "sub_sampling_factor",
)  # fmt: skip

# What reading a file gives that was cut off or overwritten.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, AssertionError, RuntimeError, UnpicklingError)


class StockModel:
    """
    A checkpoint of stock PPO, A2C or TRPO.

    :param path: the file that ``save`` wrote
    :param device: where its tensors go
    :raises ValueError: where the file holds no actor-critic policy
    """

    def __init__(self, path: str | Path, device: th.device | str) -> None:
        with damage_told(path):
            data, parameters, _ = load_from_zip_file(str(path), device=device)
        if not data or "policy_class" not in data or "policy" not in parameters:
            raise ValueError(f"path must name a model saved by Stable-Baselines3, got {str(path)!r}")
        self.data: dict[str, Any] = data
        self.parameters: dict[str, Any] = parameters  # state_dicts by name
        self.is_trpo = "cg_damping" in data
        self.is_ppo = "clip_range" in data

    def arguments(self, accepted: set[str]) -> dict[str, Any]:
        """
        :param accepted: names of the constructor's arguments
        :return: those that the checkpoint sets and that keep their meaning, in our units
        """
        like_ppo = self.is_ppo and "clip_range" in accepted
        like_trpo = self.is_trpo and "cg_damping" in accepted
        names = SHARED + (FROM_PPO if like_ppo else ()) + (FROM_TRPO if like_trpo else ())
        taken = {name: self.data[name] for name in names if name in accepted and name in self.data}
        is_ours = "cg_residual_tol" in self.data
        if like_trpo and "target_kl" in taken and not is_ours:
            # sb3-contrib's KL is a mean over the dimensions, ours a sum.
            taken["target_kl"] *= averaged_dimensions(self.data["action_space"])
        return taken


def check_file(path: str | Path | BufferedIOBase, algorithm: str, own_arguments: tuple[str, ...]) -> None:
    """
    :param path: a file that is to be loaded; file-likes are left to the loader
    :param algorithm: name of the class that loads it
    :param own_arguments: which this class alone saves together
    :raises ValueError: where the file is damaged or another algorithm's; FileNotFoundError is left to the loader
    """
    if isinstance(path, BufferedIOBase):
        return
    file = Path(path) if Path(path).exists() else Path(f"{path}.zip")
    if not file.exists():
        return
    try:
        with zipfile.ZipFile(file) as archive:
            saved = json.loads(archive.read("data"))
            archive.getinfo("policy.pth")
    except (*DAMAGED, ValueError) as error:
        raise ValueError(damaged(file, error)) from error
    if not saved.keys() >= set(own_arguments):
        raise ValueError(
            f"path must name a model saved by {algorithm}, got {str(file)!r}, which is another algorithm's: "
            f"to go on from stock PPO, A2C or TRPO, call {algorithm}.from_stock(path, env)"
        )


def read_parameters(path: str | Path | BufferedIOBase, device: th.device | str) -> dict[str, Any]:
    """
    :param path: a file that SB3 or this package saved
    :param device: where its tensors go
    :return: its state_dicts by name
    :raises ValueError: where the file is damaged or holds no policy
    """
    with damage_told(path):
        _, parameters, _ = load_from_zip_file(path, device=device, load_data=False)
        if "policy" not in parameters:
            raise KeyError("policy")
    return dict(parameters)


@contextmanager
def damage_told(path: object) -> Iterator[None]:
    """
    :param path: the file that is read
    :raises ValueError: naming it and what to do, in place of what reading a damaged file gives
    """
    try:
        yield
    except DAMAGED as error:
        raise ValueError(damaged(path, error)) from error
    except ValueError as error:
        if not isinstance(error.__cause__, zipfile.BadZipFile):  # which is what SB3 makes a ValueError of
            raise
        raise ValueError(damaged(path, error.__cause__)) from error


def damaged(path: object, error: Exception) -> str:
    """
    :param path: the file
    :param error: what reading it gave
    :return: what to tell the user
    """
    return (
        f"path must name a complete model file, got {str(path)!r}, which is truncated, damaged or no model "
        f"({type(error).__name__}: {error}): load an earlier checkpoint"
    )
