"""
Registers our algorithms with RL Zoo as soon as RL Zoo is imported, and not before.

``sb3_trustregion.pth`` (from Python 3.15 on, ``sb3_trustregion.start``) calls :func:`install` whenever the
interpreter starts. So this module imports only what the interpreter has loaded by then: not even ``typing``.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

DISABLE_VARIABLE = "SB3_TRUSTREGION_NO_HOOK"

# Each module of RL Zoo that owns a table, and the function of zoo.registration that fills the table in.
# One step per module: importing all three for a program that needs only ``rl_zoo3`` would load Optuna for nothing.
REGISTRATION_STEPS = {
    "rl_zoo3": "register_algorithms",
    "rl_zoo3.hyperparams_opt": "register_samplers",
    "rl_zoo3.exp_manager": "register_hyperparameters",
}


class RegistrationFinder:
    """Lets the other finders find RL Zoo's modules, and registers right after their code has run."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find one of the modules in :data:`REGISTRATION_STEPS`; leave all others to the finders that follow."""
        if fullname not in REGISTRATION_STEPS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._register_after(spec.loader, fullname)
                return spec
        return None

    def _register_after(self, loader: "Loader", fullname: str) -> None:
        execute = loader.exec_module

        def execute_then_register(module: "ModuleType") -> None:
            execute(module)
            # some loaders (zip files) serve several modules
            if module.__name__ == fullname:
                self._register(REGISTRATION_STEPS[fullname])

        try:
            # on the instance: whoever asks for the loader's type still gets the real one
            loader.exec_module = execute_then_register  # type: ignore[method-assign]
        except Exception as error:
            self._give_up(error)

    def _register(self, step: str) -> None:
        if self not in sys.meta_path:  # has given up
            return
        try:
            from sb3_trustregion.zoo import registration

            getattr(registration, step)()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Say what failed, once, and leave RL Zoo as it is."""
        import warnings

        sys.meta_path.remove(self)
        warnings.warn(
            f"sb3_trustregion could not register its algorithms with RL Zoo, which goes on without them: "
            f"{type(error).__name__}: {error}. `python -m sb3_trustregion.zoo doctor` tells more, "
            f"{DISABLE_VARIABLE}=1 switches this hook off.",
            RuntimeWarning,
            stacklevel=2,
        )


def is_disabled() -> bool:
    """Whether the environment variable switches the hook off."""
    return os.environ.get(DISABLE_VARIABLE, "0") not in {"", "0"}


def is_installed() -> bool:
    """Whether the hook is in place in this interpreter."""
    return any(isinstance(finder, RegistrationFinder) for finder in sys.meta_path)


def install() -> None:
    """Put the hook in place, unless it is already there or switched off."""
    if not is_disabled() and not is_installed():
        sys.meta_path.insert(0, RegistrationFinder())
