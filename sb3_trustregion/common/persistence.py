"""
Small records as tensors by dotted name, as SB3 saves a state_dict: its callers expect nothing else in there, and a file
of tensors alone is loaded without trust in who wrote it.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch as th

Tensors = dict[str, th.Tensor]


def to_tensors(value: Any, name: str) -> Tensors:
    """Tensors, numbers, texts, and mappings or records of those, as tensors by dotted name; None is left out."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        parts = [to_tensors(part, f"{name}.{key}") for key, part in value.items()]
        return {key: tensor for part in parts for key, tensor in part.items()}
    if value is None:
        return {}
    if isinstance(value, str):
        value = [float(code) for code in value.encode()]
    return {name: value if isinstance(value, th.Tensor) else th.tensor(value, dtype=th.float64)}


def packed(value: Any) -> th.Tensor:
    """Pack nested dicts and lists of tensors and numbers, exactly, into one tensor of bytes."""
    buffer = io.BytesIO()
    th.save(value, buffer)
    return th.frombuffer(bytearray(buffer.getvalue()), dtype=th.uint8)


def unpacked(state: Mapping[str, Any], name: str) -> Any:
    """What was ``packed``, of which nothing is executed; a ``RuntimeError`` where it is missing."""
    _check_present(state, [name])
    return th.load(io.BytesIO(state[name].cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


def part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors of one part, by the rest of their names."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def numbers(state: Mapping[str, Any], name: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """
    Numbers of one part, by the type that each is to have; one that does not fit its type stays as it is. A
    ``RuntimeError``, as of ``torch.nn.Module.load_state_dict``, where one is missing.
    """
    saved = part(state, name)
    _check_present(state, [f"{name}.{key}" for key in kinds])
    values = {key: float(saved[key]) for key in kinds}
    return {key: kinds[key](value) if _fits(kinds[key], value) else value for key, value in values.items()}


def text(state: Mapping[str, Any], name: str) -> str:
    """The text that ``to_tensors`` took apart; a ``RuntimeError`` where it is missing."""
    _check_present(state, [name])
    return bytes(int(code) for code in state[name].tolist()).decode(errors="replace")


def _check_present(state: Mapping[str, Any], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        raise RuntimeError(f"Missing key(s) in state_dict: {', '.join(missing)}")


def _fits(kind: Any, value: float) -> bool:
    return bool(kind is float or (value == value // 1 and kind(value) == value))
