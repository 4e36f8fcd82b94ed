"""Small records as tensors by dotted name: as in a state_dict, and loaded without trust in who wrote the file."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch as th

Tensors = dict[str, th.Tensor]
# What is in the state of an optimiser beside tensors: by the name of its type, from the number that stands for it.
PLAIN: dict[str, Callable[[float], Any]] = {"bool": bool, "int": int, "float": float, "NoneType": lambda number: None}
PLAIN |= {"dict": lambda number: {}, "list": lambda number: [], "tuple": lambda number: []}  # of nothing


def to_tensors(value: Any, *path: str) -> Tensors:
    """Tensors, numbers, texts, and mappings or records of those, as tensors by dotted name; None is left out."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        parts = [to_tensors(part, *path, key) for key, part in value.items()]
        return {key: tensor for part in parts for key, tensor in part.items()}
    if value is None:
        return {}
    if isinstance(value, str):
        value = [float(code) for code in value.encode()]
    tensor = value if isinstance(value, th.Tensor) else th.tensor(value, dtype=th.float64, device="cpu")
    return {".".join(path): tensor}


def taken_apart(value: Any, *path: Any) -> Tensors:
    """Nested dicts and lists of tensors, numbers and None as tensors, by the way to each and its kind, as JSON."""
    if isinstance(value, Mapping) and value:
        parts = [taken_apart(part, *path, ["dict", key]) for key, part in value.items()]
    elif isinstance(value, list | tuple) and value:
        parts = [taken_apart(part, *path, ["list", index]) for index, part in enumerate(value)]
    elif isinstance(value, th.Tensor):
        return {json.dumps([*path, "tensor"]): value}
    else:
        return to_tensors([float(value or 0.0)], json.dumps([*path, type(value).__name__]))
    return {name: tensor for part in parts for name, tensor in part.items()}


def can_be_taken_apart(value: Any) -> bool:
    """Whether a value is of what ``taken_apart`` and ``put_together`` know."""
    if isinstance(value, Mapping):
        names = all(isinstance(key, str | int | float | None) for key in value)
        return names and all(map(can_be_taken_apart, value.values()))
    if isinstance(value, list | tuple):
        return all(map(can_be_taken_apart, value))
    return isinstance(value, th.Tensor) or type(value).__name__ in PLAIN


def put_together(tensors: Mapping[str, th.Tensor]) -> Any:
    """What was ``taken_apart``; tuples come back as lists."""
    return _put_together([(json.loads(name), tensor) for name, tensor in tensors.items()])


def _put_together(entries: list[tuple[list[Any], th.Tensor]]) -> Any:
    (path, tensor), *_ = entries
    if len(path) == 1:
        return tensor if path[0] == "tensor" else PLAIN[path[0]](float(tensor))
    children: dict[Any, list[tuple[list[Any], th.Tensor]]] = {}
    for ((_, key), *rest), tensor in entries:
        children.setdefault(key, []).append((rest, tensor))
    values = {key: _put_together(child) for key, child in children.items()}
    return values if path[0][0] == "dict" else list(values.values())


def part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors of one part, by the rest of their names."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def numbers(state: Mapping[str, Any], name: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of one part, each of its type if it fits; a ``RuntimeError``, as of torch, where one is missing."""
    saved = part(state, name)
    check_present(state, [f"{name}.{key}" for key in kinds])
    values = {key: float(saved[key]) for key in kinds}
    return {key: kinds[key](value) if _fits(kinds[key], value) else value for key, value in values.items()}


def text(state: Mapping[str, Any], name: str) -> str:
    """The text that ``to_tensors`` took apart; a ``RuntimeError`` where it is missing."""
    check_present(state, [name])
    return bytes(int(code) for code in state[name].tolist()).decode(errors="replace")


def check_present(state: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise a ``RuntimeError``, as of ``torch.nn.Module.load_state_dict``, where one of the names is missing."""
    missing = [name for name in names if name not in state]
    if missing:
        raise RuntimeError(f"Missing key(s) in state_dict: {', '.join(missing)}")


def _fits(kind: Any, value: float) -> bool:
    return bool(kind is float or (value == value // 1 and kind(value) == value))
