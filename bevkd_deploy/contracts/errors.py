"""Every error a user can meet. Each says what was wrong, got versus expected, and how to fix it."""

from __future__ import annotations


class BevkdError(Exception):
    """Base of all errors that the command line prints in one line, without a traceback."""

    exit_code = 5


class UsageError(BevkdError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class RecipeError(UsageError):
    """One or more problems in a recipe, all found in one pass."""

    def __init__(self, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        noun = "error" if len(problems) == 1 else "errors"
        super().__init__("\n".join([f"{path}: {len(problems)} {noun}", *(f"  {p}" for p in problems)]))


class DataError(BevkdError):
    """A dataset, sensor file or annotation is missing, truncated or inconsistent."""


class ArtifactError(BevkdError):
    """A checkpoint, ONNX file, plan or manifest does not match what it is used with."""


class ExportError(BevkdError):
    """The student could not be turned into the requested artefact."""


class OpNotPortable(ExportError):
    """The exported graph holds an operator outside the portable-op contract."""


class DistillError(BevkdError):
    """A distillation loss got tensors that it cannot compare, or too few of them to teach anything."""


class NonFiniteError(BevkdError):
    """A loss or an output became NaN or infinite."""


class DeadTermError(BevkdError):
    """A distillation term does not reach the student: the run would silently train without it."""


class GateFailed(BevkdError):
    """A required gate did not pass."""

    exit_code = 1


class FindingsError(BevkdError):
    """A check found something missing or broken; it has been listed."""

    exit_code = 1


class UnstableMeasurement(BevkdError):
    """A measurement could not decide a gate."""

    exit_code = 3


class CannotRunHere(BevkdError):
    """This machine lacks what the artefact needs (GPU, engine library, compute capability)."""

    exit_code = 4


class Interrupted(BevkdError):
    """The user stopped a stage; what was done is saved and can be resumed."""

    exit_code = 130
