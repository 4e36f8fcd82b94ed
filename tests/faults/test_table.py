"""``docs/faults.md``: each row of its tables names tests and measurements of stock, those exist, its example runs."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from sb3_trustregion.checkpoint import checkpoints

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "faults.md"
COLUMNS = ["Fault", "Stock TRPO", "Stock PPO", "Ours", "Shown by"]


def rows() -> list[list[str]]:
    """The cells of every table with these columns, without their heads."""
    found: list[list[str]] = []
    inside = False
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells == COLUMNS)
        if inside and cells != COLUMNS and set("".join(cells)) != {"-"}:
            found.append(cells)
    return found


def named(text: str) -> list[str]:
    return re.findall(r"`((?:test_\w+|stock_faults)\.py::\w+)`", text)


def existing() -> set[str]:
    """``file::function``, of the fault tests, of those beside them, and of the measurements of stock."""
    tests = [*(ROOT / "tests" / "faults").glob("test_*.py"), *(ROOT / "tests").glob("test_*.py")]
    return {
        f"{path.name}::{node.name}"
        for path in [*tests, ROOT / "docs" / "stock_faults.py"]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def test_named_tests_exist() -> None:
    assert set(named(DOCUMENT.read_text(encoding="utf-8"))) <= existing()


def test_every_row_is_shown_by_a_test() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == len(COLUMNS)
        assert all(row)
        assert [name for name in named(row[-1]) if name.startswith("test_")], row[0]


def test_every_fault_test_is_in_the_document() -> None:
    """What is not named there is not known to the reader."""
    files = {path.name for path in (ROOT / "tests" / "faults").glob("test_*.py") if path != Path(__file__)}
    of_faults = {name for name in existing() if name.partition("::")[0] in files and "::test_" in name}
    assert of_faults <= set(named(DOCUMENT.read_text(encoding="utf-8")))


def test_every_measurement_of_stock_is_in_the_document() -> None:
    measured = {
        f"stock_faults.py::{node.name}"
        for node in ast.parse((ROOT / "docs" / "stock_faults.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("fault(" in ast.unparse(one) for one in node.decorator_list)
    }
    assert len(measured) > 20
    assert measured <= set(named(DOCUMENT.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_example_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other numbers; a second time with a longer way to go."""
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for total, newest in (("1_024", 1024), ("2_048", 2048)):
        changes = {
            "1_000_000": total,
            "50_000": "256",
            "seed=1)": "seed=1, n_steps=64, batch_size=64)",
            # Forked, so that they need not import everything once more.
            "vec_env_cls=SubprocVecEnv": "vec_env_cls=SubprocVecEnv, vec_env_kwargs={'start_method': 'fork'}",
        }
        program = example
        for text, other in changes.items():
            assert program.count(text) == 1
            program = program.replace(text, other)
        (tmp_path / "example.py").write_text(program, encoding="utf-8")
        done = runpy.run_path("example.py", run_name="__main__")
        done["env"].close()
        assert done["model"].num_timesteps == newest
        kept = [int(path.name.split("_")[1]) for path in checkpoints(tmp_path / "checkpoints")]
        assert kept == [newest - 512, newest - 256, newest]
