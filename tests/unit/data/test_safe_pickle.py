"""The restricted unpickler: NumPy values come in, code stays out, damage becomes one kind of error."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.safe_pickle import load_pickle

VALUE = {
    "text": "scene",
    "list": [1, 2.5, None, True],
    "ordered": collections.OrderedDict(a=1),
    "set": {3},
    "scalar": np.float64(1.25),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bools": np.array([True, False]),
}


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def assert_is_value(loaded: dict[str, Any]) -> None:
    plain = ("text", "list", "ordered", "set", "scalar")
    assert {key: loaded[key] for key in plain} == {key: VALUE[key] for key in plain}
    assert loaded["scalar"].dtype == np.float64
    assert loaded["array"].dtype == np.float32
    assert loaded["array"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["bools"].tolist() == [True, False]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_and_numpy_values_come_through(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "values.pkl"
    path.write_bytes(pickle.dumps(VALUE, protocol=protocol))
    assert_is_value(load_pickle(path))


def test_files_written_by_numpy_1_are_read(tmp_path: Path) -> None:
    written = pickle.dumps(VALUE, protocol=2)
    older = written.replace(b"numpy._core.", b"numpy.core.")
    assert older != written
    (tmp_path / "old.pkl").write_bytes(older)
    assert_is_value(load_pickle(tmp_path / "old.pkl"))


def test_a_hostile_file_is_named_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps({"data_list": Call(os.system, f"touch {trace}")}))
    with pytest.raises(DataError) as error:
        load_pickle(path)
    assert str(path) in str(error.value)
    assert f"{os.system.__module__}.system" in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Call(eval, "1"), "builtins.eval"),
        (Call(getattr, "x", "upper"), "builtins.getattr"),
        (Call(subprocess.check_output, "true"), "subprocess.check_output"),
        (Call(np.load, "x"), "numpy.load"),
        (Call(Path, "x"), "Path"),
    ],
)
def test_nothing_but_values_is_loaded(tmp_path: Path, call: Call, named: str) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(call))
    with pytest.raises(DataError, match=rf"x\.pkl is refused: it wants to load .*{named}"):
        load_pickle(tmp_path / "x.pkl")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pkl cannot be read: No such file"):
        load_pickle(tmp_path / "gone.pkl")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(VALUE)
    path = tmp_path / "cut.pkl"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.pkl is refused"):
            load_pickle(path)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"\x80\x04]K\x01K\x02s.", id="an item set in a list by name"),
        pytest.param(b"\x80\x04\x95" + b"\xff" * 8 + b"N.", id="a frame of impossible length"),
        pytest.param(b"\x80\x04\x8c\x01aK\x01\x85R.", id="a string called as a function"),
        pytest.param(b"\x80\x04K\x01Q.", id="a persistent reference"),
        pytest.param(b"\x80\x04h\x07.", id="a reference to nothing"),
        pytest.param(b"\x80\x04cnumpy\ndtype\n\x8c\x02zz\x85R.", id="an unknown dtype"),
    ],
)
def test_whatever_the_unpickler_trips_over_is_a_refusal(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(damaged)
    with pytest.raises(DataError, match=r"x\.pkl is refused"):
        load_pickle(tmp_path / "x.pkl")
