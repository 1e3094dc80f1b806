"""Reading mmdet3d's .pkl info files without executing what is in them: NumPy values and builtins only."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.errors import DataError

_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("builtins", "tuple"),
    ("collections", "OrderedDict"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        # numpy.core became numpy._core in NumPy 2; the old path still resolves there, with a warning.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_pickle(path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays.

    Raises:
        DataError: the file is missing, damaged, or holds anything else (such a file could run code).
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DataError(f"info file {path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ValueError, ImportError) as error:
        raise DataError(
            f"info file {path} is refused: {error}. Only plain values and NumPy arrays are read from a .pkl"
        ) from error
