"""``docs/faults.md``: the footnote of each row names tests and measurements of stock, and those exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "faults.md"
COLUMNS = ["Fault", "What happens"]


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


def footnotes() -> dict[str, str]:
    """What each says, by its number."""
    return dict(re.findall(r"^\[\^(\d+)\]: (.*)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE))


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
    shown_by = footnotes()
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == len(COLUMNS)
        assert all(row)
        (number,) = re.findall(r"\[\^(\d+)\]$", row[-1])
        assert [name for name in named(shown_by.pop(number)) if name.startswith("test_")], row[0]
    assert not shown_by


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
