"""Damaged, foreign, older and malicious files, and a disk that is full."""

import base64
import io
import itertools
import json
import pickle
import random
import resource
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.checkpoint import MEMBER, ResumableCheckpointCallback, checkpoints, resume, save_checkpoint
from tests.faults.checks import assert_finite, numbers_of
from tests.faults.environments import healthy
from tests.helpers import ALGORITHMS, MEASURING, assert_same, differs, make_model, shared, state_of

N_STEPS = 16
UPDATE = 2 * N_STEPS

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def new_model(algorithm: type[Any], **kwargs: Any) -> Any:
    return make_model(algorithm, environment(), n_steps=N_STEPS, **kwargs)


def environment() -> VecNormalize:
    return VecNormalize(DummyVecEnv([healthy()] * 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Any], Path]:
    """A complete checkpoint of each algorithm."""
    folder = tmp_path_factory.mktemp("whole")
    paths = {}
    for algorithm in ALGORITHMS:
        model = new_model(algorithm)
        model.learn(3 * UPDATE)
        paths[algorithm] = folder / f"{algorithm.__name__}_96_steps.zip"
        save_checkpoint(model, paths[algorithm])
    return paths


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def ways_in(algorithm: type[Any], path: Path) -> dict[str, Callable[[], Any]]:
    """Every way to read a file."""
    return {
        "load": lambda: algorithm.load(path, device="cpu"),
        "resume": lambda: resume(algorithm, path, environment(), device="cpu"),
        "set_parameters": lambda: new_model(algorithm).set_parameters(path),
        "from_stock": lambda: algorithm.from_stock(path, environment(), device="cpu"),
    }


WAYS = ("load", "resume", "set_parameters", "from_stock")
# Which file, and what to do.
TOLD = r"(?s)damaged\.zip.*load an earlier"


@pytest.mark.parametrize(("algorithm", "way"), shared(WAYS))
def test_truncated(tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any], way: str) -> None:
    """Cut off anywhere, down to an empty file."""
    content = whole[algorithm].read_bytes()
    path = tmp_path / "damaged.zip"
    for length in [0, 1, 21, 22, *range(100, len(content), len(content) // 10), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=TOLD):
            ways_in(algorithm, path)[way]()


@pytest.mark.parametrize("way", WAYS)
def test_a_bit_flipped(tmp_path: Path, whole: dict[type[Any], Path], way: str) -> None:
    """A disk that errs: told, or harmless because nothing that is read was hit; never read as something else."""
    content = whole[AdaptiveTRPO].read_bytes()
    path, positions = tmp_path / "damaged.zip", random.Random(0)
    reference = numbers_of(AdaptiveTRPO.load(whole[AdaptiveTRPO], device="cpu"))
    n_told = 0
    for _ in range(40):
        damaged = bytearray(content)
        damaged[positions.randrange(len(content))] ^= 1 << positions.randrange(8)
        path.write_bytes(damaged)
        model, told = attempt(ways_in(AdaptiveTRPO, path)[way])
        assert not told or "damaged.zip" in told
        n_told += bool(told)
        if way == "load" and not told:
            assert_same(numbers_of(model), reference)
    assert n_told > 5


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return read(), ""
    except ValueError as error:
        return None, str(error)


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def text(path: Path) -> None:
    path.write_text("algo: adaptive_trpo\n" * 50)


def other_archive(path: Path) -> None:
    write(path, {"word/document.xml": b"<xml/>", "mimetype": b"text"})


def lookalike(path: Path) -> None:
    """An archive with members of the right names that hold something else."""
    write(path, {"data": b"{}", "policy.pth": b"no tensors", "policy.optimizer.pth": b"", MEMBER: b"nor state"})


def statistics(path: Path) -> None:
    """What lies beside a model of RL Zoo."""
    environment().save(str(path))


FOREIGN = [lookalike, random_bytes, text, other_archive, statistics]


@pytest.mark.parametrize(("algorithm", "write_file", "way"), shared(itertools.product(FOREIGN, WAYS)))
def test_foreign(tmp_path: Path, algorithm: type[Any], write_file: Callable[[Path], None], way: str) -> None:
    path = tmp_path / "damaged.zip"
    write_file(path)
    with pytest.raises(ValueError, match=TOLD):
        ways_in(algorithm, path)[way]()


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, PenaltyPPO])
def test_of_another_algorithm(tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any]) -> None:
    """Stock PPO, A2C and TRPO, and our own others."""
    env = environment()
    policy_kwargs = {"net_arch": [8]}
    stock = {
        "PPO": PPO("MlpPolicy", env, n_steps=32, policy_kwargs=policy_kwargs, device="cpu"),
        "A2C": A2C("MlpPolicy", env, policy_kwargs=policy_kwargs, device="cpu"),
        "TRPO": TRPO("MlpPolicy", env, n_steps=32, policy_kwargs=policy_kwargs, device="cpu"),
    }
    for name, model in stock.items():
        model.save(tmp_path / name)
    others = [*(tmp_path / f"{name}.zip" for name in stock), *(path for one, path in whole.items() if one != algorithm)]
    for path in others:
        told = (
            rf"a model saved by {algorithm.__name__}, got .*{path.name}.*{algorithm.__name__}\.from_stock\(path, env\)"
        )
        with pytest.raises(ValueError, match=told):
            algorithm.load(path, env=env)
        # And what it says to do works.
        algorithm.from_stock(path, environment(), device="cpu")


def with_unknown_state(content: dict[str, bytes]) -> None:
    edit_judge(content, lambda state: state.update({"state.of_a_later_version": th.tensor(1.0)}))


def with_unknown_arguments(content: dict[str, bytes]) -> None:
    edit_data(content, lambda data: data.update(of_a_later_version=3))


def edit_judge(content: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> None:
    state = th.load(io.BytesIO(content["judge.pth"]), weights_only=True)
    change(state)
    content["judge.pth"] = tensors(state)


def tensors(state: Any) -> bytes:
    file = io.BytesIO()
    th.save(state, file)
    return file.getvalue()


def edit_data(content: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(content["data"])
    change(data)
    content["data"] = json.dumps(data).encode()


@pytest.mark.parametrize("change", [with_unknown_state, with_unknown_arguments])
@pytest.mark.parametrize("algorithm", MEASURING)
def test_of_another_version(
    tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any], change: Callable[[dict[str, bytes]], None]
) -> None:
    """What such a file knows is taken, the rest starts anew."""
    content = members(whole[algorithm])
    change(content)
    path = write(tmp_path / "older.zip", content)
    original = algorithm.load(whole[algorithm], device="cpu")
    for model in (algorithm.load(path, env=environment(), device="cpu"), resume(algorithm, path, environment())):
        assert_same(state_of(model.policy), state_of(original.policy))
        assert_same(model.policy.optimizer.state_dict(), original.policy.optimizer.state_dict())
        assert_same(model.judge.state_dict(), original.judge.state_dict())
        before = state_of(model.policy)
        model.learn(2 * UPDATE, reset_num_timesteps=False)
        assert differs(before, state_of(model.policy))
        assert_finite(model)


def without_policy(content: dict[str, bytes]) -> None:
    del content["policy.pth"]


def without_arguments(content: dict[str, bytes]) -> None:
    del content["data"]


def with_other_arguments(content: dict[str, bytes]) -> None:
    content["data"] = content["data"][:-2]


def with_half_a_tensor(content: dict[str, bytes]) -> None:
    content["policy.optimizer.pth"] = content["policy.optimizer.pth"][:1000]


def without_judge(content: dict[str, bytes]) -> None:
    del content["judge.pth"]


LACKING = [with_half_a_tensor, without_policy, without_arguments, with_other_arguments]


@pytest.mark.parametrize(("algorithm", "change", "way"), shared(itertools.product(LACKING, ["load", "resume"])))
def test_lacking_what_nothing_can_stand_in_for(
    tmp_path: Path,
    whole: dict[type[Any], Path],
    algorithm: type[Any],
    change: Callable[[dict[str, bytes]], None],
    way: str,
) -> None:
    content = members(whole[algorithm])
    change(content)
    path = write(tmp_path / "damaged.zip", content)
    with pytest.raises(ValueError, match=TOLD):
        ways_in(algorithm, path)[way]()


@pytest.mark.parametrize("algorithm", MEASURING)
def test_lacking_the_judge(tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any]) -> None:
    """A radius that started anew in silence would be no resumption."""
    content = members(whole[algorithm])
    without_judge(content)
    path = write(tmp_path / "damaged.zip", content)
    with pytest.raises(ValueError, match="judge"):
        algorithm.load(path, env=environment(), device="cpu")


@pytest.mark.parametrize(("algorithm", "way"), shared(["load", "resume", "set_parameters"]))
def test_of_another_network(tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any], way: str) -> None:
    """Whole, but not for this policy: torch says what does not fit."""
    content = members(whole[algorithm])
    content["policy.pth"] = tensors({"weight": th.zeros(3)})
    path = write(tmp_path / "damaged.zip", content)
    with pytest.raises(RuntimeError, match=r"(?s)state_dict.*Missing key"):
        ways_in(algorithm, path)[way]()


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_file_likes(tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any]) -> None:
    """As SB3 takes them; they stay open, wherever they stand."""
    content = whole[algorithm].read_bytes()
    reference = algorithm.load(whole[algorithm], device="cpu")
    with io.BytesIO(content) as memory, whole[algorithm].open("rb") as file:
        for source in (memory, file):
            source.seek(7)
            model = new_model(algorithm)
            model.set_parameters(source)
            readings = [model, algorithm.load(source), algorithm.from_stock(source, environment(), device="cpu")]
            for one in readings:
                assert_same(state_of(one.policy), state_of(reference.policy))
            assert not source.closed
    for length in (0, 1000, len(content) - 1):
        for way in ("load", "set_parameters", "from_stock"):
            with pytest.raises(ValueError, match=r"(?s)BytesIO.*load an earlier"):
                ways_in(algorithm, io.BytesIO(content[:length]))[way]()


@pytest.mark.parametrize(("path", "error"), [("none", FileNotFoundError), (".", OSError), (None, TypeError)])
@pytest.mark.parametrize("way", ["load", "set_parameters", "from_stock"])
def test_what_is_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Any, error: type[Any], way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        ways_in(AdaptiveTRPO, path)[way]()


def test_the_newest_complete_one_is_taken_and_another_algorithms_is_told(tmp_path: Path) -> None:
    """The newest lost its end in a power cut, the one before it was saved without a training state."""
    new_model(AdaptiveTRPO).learn(5 * UPDATE, callback=ResumableCheckpointCallback(UPDATE, tmp_path, keep=4))
    *_, good, foreign, newest = checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-500])
    other = new_model(AdaptivePPO)
    other.save(foreign)
    with pytest.warns(UserWarning, match=f"({newest.name}|{foreign.name}).*; trying the one before it") as told:
        model = resume(AdaptiveTRPO, tmp_path, environment())
    assert len([one for one in told if "trying the one before" in str(one.message)]) == 2
    assert f"_{model.num_timesteps}_" in good.name

    save_checkpoint(other, foreign)
    with pytest.warns(UserWarning, match=newest.name), pytest.raises(ValueError, match="another algorithm's"):
        resume(AdaptiveTRPO, tmp_path, environment())


class Malicious:
    """Leaves a trace where it is unpickled without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


TENSORS = ["policy.optimizer.pth", MEMBER, "judge.pth", "policy.pth", "pytorch_variables.pth"]


@pytest.mark.parametrize(("algorithm", "member", "format_"), shared(itertools.product(TENSORS, ["pickle", "torch"])))
def test_no_code_in_tensors(
    tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any], member: str, format_: str
) -> None:
    """Nothing but ``data``, which SB3 itself unpickles, can bring code along; and that only where SB3 reads it."""
    trace = tmp_path / "trace"
    file = io.BytesIO()
    if format_ == "pickle":
        pickle.dump(Malicious(trace), file)
    else:
        th.save({"state": Malicious(trace)}, file)
    content = members(whole[algorithm])
    content[member] = file.getvalue()
    path = write(tmp_path / "damaged.zip", content)
    for way in WAYS:
        if member == MEMBER and way != "resume":
            ways_in(algorithm, path)[way]()  # does not look at it
            continue
        with pytest.raises(ValueError, match=TOLD):
            ways_in(algorithm, path)[way]()
    assert not trace.exists()
    # The trap works.
    with zipfile.ZipFile(path) as archive, archive.open(member) as opened:
        if format_ == "pickle":
            pickle.load(opened)
        else:
            th.load(opened, weights_only=False)
    assert trace.exists()


@each_algorithm
def test_code_of_other_algorithms_is_not_run(
    tmp_path: Path, whole: dict[type[Any], Path], algorithm: type[Any]
) -> None:
    """A file that is refused for what it is has had nothing of it unpickled, not even ``data``."""
    trace = tmp_path / "trace"
    content = members(whole[algorithm])
    pickled = base64.b64encode(pickle.dumps(Malicious(trace))).decode()
    content["data"] = json.dumps({"policy_class": {":type:": "type", ":serialized:": pickled}}).encode()
    path = write(tmp_path / "damaged.zip", content)
    with pytest.raises(ValueError, match="another algorithm's"):
        algorithm.load(path)
    assert not trace.exists()
    load_from_zip_file(path)
    assert trace.exists()  # the trap works: SB3's own loader runs it


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A file system with room for so much, where it can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here; test_files_too_large shows the same")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond that: writes fail as they do on a full disk, at whichever byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_only(path: Path, content: bytes) -> None:
    """Of a folder: that one checkpoint, untouched, and nothing else."""
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == content


@pytest.mark.parametrize("algorithm", MEASURING)
def test_full_disk(tmp_path: Path, algorithm: type[Any]) -> None:
    """The checkpoint before stays as it is, nothing half written is left, training goes on and says so."""
    model = new_model(algorithm)
    model.learn(4 * UPDATE)
    save_checkpoint(model, tmp_path / "checkpoint_128_steps.zip")
    content = (tmp_path / "checkpoint_128_steps.zip").read_bytes()
    with small_disk(tmp_path / "disk", 3 * len(content)) as folder:
        path = folder / "checkpoint_128_steps.zip"
        path.write_bytes(content)
        filler = folder / "filler"
        filler.write_bytes(bytes(len(content) * 3 // 2))  # leaves half of what a checkpoint needs
        with pytest.warns(UserWarning, match=r"checkpoint_\d+_steps.zip could not be written .*the checkpoints before"):
            model.learn(3 * UPDATE, callback=ResumableCheckpointCallback(1, folder), reset_num_timesteps=False)
        assert model.num_timesteps == 7 * UPDATE
        filler.unlink()
        assert_only(path, content)
        assert resume(algorithm, folder, environment(), device="cpu").num_timesteps == 4 * UPDATE
        # With room again it goes on by itself.
        model.learn(2 * UPDATE, callback=ResumableCheckpointCallback(1, folder, keep=1), reset_num_timesteps=False)
        assert resume(algorithm, folder, environment(), device="cpu").num_timesteps == 9 * UPDATE


def test_files_too_large(tmp_path: Path) -> None:
    """At whichever byte the disk is full."""
    model = new_model(AdaptiveTRPO)
    model.learn(UPDATE)
    path = tmp_path / "checkpoint_32_steps.zip"
    save_checkpoint(model, path)
    content = path.read_bytes()
    for n_bytes in range(0, len(content), len(content) // 30):
        with largest_file(n_bytes), pytest.raises(OSError, match=r"."):
            save_checkpoint(model, path)
        assert_only(path, content)
    with largest_file(len(content) // 2), pytest.warns(UserWarning, match="could not be written"):
        model.learn(2 * UPDATE, callback=ResumableCheckpointCallback(1, tmp_path), reset_num_timesteps=False)
    assert model.num_timesteps == 3 * UPDATE
    assert_only(path, content)


def test_saving_over_a_file_on_a_full_disk_loses_it(tmp_path: Path) -> None:
    """SB3's own ``save``, which is ours as well: ``save_checkpoint`` is there for what must not be lost."""
    model = new_model(AdaptiveTRPO)
    path = tmp_path / "damaged.zip"
    model.save(path)
    size = path.stat().st_size
    with largest_file(size // 2), pytest.raises(OSError, match="File too large"):
        model.save(path)
    assert path.stat().st_size < size
    with pytest.raises(ValueError, match=TOLD):
        AdaptiveTRPO.load(path)
