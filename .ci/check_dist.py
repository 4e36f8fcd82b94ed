"""
Wheel and sdist hold all that they should and nothing else. ``python .ci/check_dist.py dist``, in a checkout.

The wheel holds the package, its hyperparameter files and the start-up hook. The sdist holds what git tracks, so that
tests and docs can be run from it, but for settings of the place of development and the archives of old grids.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_IN_SDIST = (".github/", ".pre-commit-config.yaml")


def expected_in_wheel(tracked: set[str]) -> set[str]:
    """:return: names of files, but for those of ``dist-info``"""
    package = {name for name in tracked if name.startswith("sb3_trustregion/")}
    files = {f"sb3_trustregion/{name}" for name in tracked if name.startswith("hyperparams/")}
    return package | files | {name.removeprefix("startup/") for name in tracked if name.startswith("startup/")}


def expected_in_sdist(tracked: set[str]) -> set[str]:
    """:return: names of files, but for ``PKG-INFO``, which is made"""
    return {name for name in tracked if not name.startswith(NOT_IN_SDIST) and not name.endswith(".tar.xz")}


def main(folder: Path) -> int:
    """:return: exit code: 1 where something is missing or too much"""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    wrong = []
    for path, found, expected in (
        (wheel, in_wheel, expected_in_wheel(tracked)),
        (sdist, in_sdist, expected_in_sdist(tracked)),
    ):
        wrong += [f"{path.name} lacks {name}" for name in sorted(expected - found)]
        wrong += [f"{path.name} should not hold {name}" for name in sorted(found - expected)]
    print("\n".join(wrong) or f"{wheel.name}: {len(in_wheel)} files, {sdist.name}: {len(in_sdist)} files, as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
