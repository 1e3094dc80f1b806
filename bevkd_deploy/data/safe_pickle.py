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
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("builtins", "tuple"),
    ("collections", "OrderedDict"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2 writes Python 2's name of builtins, NumPy 1 writes numpy.core where NumPy 2 has numpy._core.
        module = "builtins" if module == "__builtin__" else module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        return super().find_class(module, name)


def load_pickle(path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays.

    Raises:
        DataError: the file is missing, damaged, or holds anything else (such a file could run code).
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DataError(f"info file {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damage makes an unpickler raise nearly anything: TypeError, OverflowError, ...
        raise DataError(
            f"info file {path} is refused: {error}. Only plain values and NumPy arrays are read from a .pkl"
        ) from error
