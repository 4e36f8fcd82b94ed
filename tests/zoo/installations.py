"""Environments with sb3_trustregion installed, to run real command lines in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sb3_trustregion import ALGORITHMS as TABLE

ROOT = Path(__file__).parents[2]
TIMEOUT = 300

ALGORITHMS = tuple(TABLE)

# ``python -m`` of several commands in one process, which imports what takes seconds once.
SEVERAL = """
import contextlib, io, json, runpy, sys, traceback

done = []
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv, code, written, errors = [module, *arguments], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    done.append([code, written.getvalue(), errors.getvalue()])
json.dump(done, open("done.json", "w"))
"""


class Done(NamedTuple):
    """
    What came of one of several commands.

    :param returncode: as of its own process
    :param stdout: what it wrote
    :param stderr: likewise
    """

    returncode: int
    stdout: str
    stderr: str


class Installation(NamedTuple):
    """
    A virtual environment of its own, which borrows the dependencies of the one that runs the tests.

    The borrowed packages come by a path in a .pth file, and start-up files are read only in the environment's own
    folder: a sb3_trustregion that happens to be installed beside the dependencies does not start its hook here.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def pip(self, *args: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, *args]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)

    def installed_files(self) -> list[str]:
        """What belongs to us in site-packages, byte code apart."""
        return sorted(path.name for path in self.site_packages.iterdir() if "trustregion" in path.name)

    def run(
        self, *args: str | Path, cwd: Path | None = None, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python; a failure that was not asked for shows what the process wrote."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SB3_", "COV_"))}
        settings = {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [self.python, *args],
            cwd=cwd or self.folder,  # never the source tree, which would be importable from there
            env={**inherited, **settings, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if check and result.returncode != 0:
            pytest.fail(f"{args} ended with {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def zoo(
        self, script: str, *args: str | Path, cwd: Path, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m rl_zoo3.<script>``."""
        return self.run("-m", f"rl_zoo3.{script}", *args, cwd=cwd, check=check, **variables)

    def several(self, commands: list[tuple[str, ...]], cwd: Path, **variables: str) -> list[Done]:
        """Run ``python -m`` of several commands, one after the other, in one process."""
        self.run("-c", SEVERAL, json.dumps(commands), cwd=cwd, check=True, **variables)
        return [Done(*done) for done in json.loads((cwd / "done.json").read_text())]


def create_installation(folder: Path) -> Installation:
    """Make an environment with everything but sb3_trustregion."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=TIMEOUT)
    installation = Installation(folder)
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (installation.site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return installation


def install_wheel(folder: Path, wheel: Path) -> Installation:
    """Make an environment with everything, sb3_trustregion from a wheel."""
    installation = create_installation(folder)
    installation.pip("install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    return installation


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this source tree."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
    (path,) = folder.glob("*.whl")
    return path
