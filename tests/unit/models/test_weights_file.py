"""Reading other people's files: what is taken, what is passed over, and what is refused without running it."""

from __future__ import annotations

import argparse
import builtins
import os
import pickle
import subprocess
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.models.weights_file import read_weights

BOTH_FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
            "conv.half": torch.randn(3, generator=generator).half(),
            "bn.num_batches_tracked": torch.tensor(7),
        }
    )


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@BOTH_FORMATS
def test_weights_meta_and_the_rest_are_told_apart(tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool) -> None:
    content = {
        "meta": {"cfg": "a = 1", "epoch": 20, "seed": np.int64(3)},
        "state_dict": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(0.1)}]},
        "message_hub": {"log_scalars": OrderedDict(loss=deque([1.0, 2.0])), "data": np.arange(3.0)},
        "hooks": defaultdict(list, {"a": [1]}),
        "args": argparse.Namespace(lr=0.1),
    }
    path = save(content, tmp_path / "epoch_20.pth", zipped)
    file = read_weights(path, sha256_file(path).upper())
    assert file.sha256 == sha256_file(path)
    assert list(file.state) == list(state)
    for key, value in state.items():
        assert file.state[key].dtype == value.dtype
        assert torch.equal(file.state[key], value)
    assert file.meta["cfg"] == "a = 1"
    assert file.meta["epoch"] == 20
    assert file.others == ("args", "hooks", "message_hub", "optimizer")
    assert {"argparse.Namespace", "collections.defaultdict", "collections.deque"} <= set(file.passed_over)


@BOTH_FORMATS
def test_a_bare_state_dict_and_one_of_parameters_are_read(
    tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    assert list(read_weights(save(state, tmp_path / "bare.pth", zipped)).state) == list(state)
    parameters = {"model": {"weight": nn.Parameter(torch.ones(2))}}
    read = read_weights(save(parameters, tmp_path / "parameters.pth", zipped)).state["weight"]
    assert not read.requires_grad
    assert torch.equal(read, torch.ones(2))


@BOTH_FORMATS
def test_the_versions_of_modules_are_kept(tmp_path: Path, zipped: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    file = read_weights(save({"state_dict": network.state_dict()}, tmp_path / "a.pth", zipped))
    assert file.versions == {"": {"version": 1}, "0": {"version": 2}}


def test_safetensors_come_with_their_header(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(dict(state), path, metadata={"made": "here"})
    file = read_weights(path)
    assert file.header == {"made": "here"}
    assert all(torch.equal(file.state[key], value) for key, value in state.items())


@BOTH_FORMATS
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch {}",)),
        (subprocess.check_call, (["touch", "{}"],)),
        (builtins.exec, ("open({!r}, 'w').close()",)),
        (Path.touch, (Path("{}"),)),
    ],
    ids=["os.system", "subprocess", "exec", "method"],
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    tmp_path: Path,
    state: dict[str, torch.Tensor],
    zipped: bool,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    mark = tmp_path / "mark"

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(item) for item in value]
        return type(value)(str(value).format(str(mark)))

    evil = Calls(function, *map(named, arguments))
    pickle.loads(pickle.dumps(evil))
    assert mark.exists()  # an ordinary unpickler is taken in
    mark.unlink()
    for name, content in (("meta", {"state_dict": state, "meta": evil}), ("whole", evil)):
        path = save(content, tmp_path / f"{name}.pth", zipped)
        with pytest.raises(ArtifactError, match=r"is refused, for it holds more than weights|holds no state dict"):
            read_weights(path)
        assert not mark.exists()


@BOTH_FORMATS
def test_a_function_of_a_package_that_is_passed_over_is_not_called(
    tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    mark = tmp_path / "mark"
    path = save({"state_dict": state, "message_hub": Calls(np.savetxt, str(mark), [1.0])}, tmp_path / "a.pth", zipped)
    assert list(read_weights(path).state) == list(state)
    assert not mark.exists()


def test_what_getattr_would_have_given_cannot_be_called(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    text = b"\x80\x02cbuiltins\ngetattr\nX\x01\x00\x00\x00xX\x05\x00\x00\x00upper\x86R)R."
    assert pickle.loads(text) == "X"  # getattr("x", "upper")()
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path = tmp_path / "chain.pth"
    path.write_bytes(legacy + text + pickle.dumps([], 2))
    with pytest.raises(ArtifactError, match="Trying to call reduce for unrecognized function"):
        read_weights(path)


def test_the_stand_ins_are_gone_after_reading(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    before = set(torch.serialization.get_safe_globals())  # a list in no order
    read_weights(save({"state_dict": state, "meta": {"seed": np.int64(3)}}, tmp_path / "a.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_missing_file_and_another_hash_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ArtifactError, match=r"checkpoint not found: .*absent\.pth"):
        read_weights(tmp_path / "absent.pth")
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match=f"has sha256 {sha256_file(path)}, the recipe expects {'0' * 64}"):
        read_weights(path, "0" * 64)


@BOTH_FORMATS
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_damaged(tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool, part: float) -> None:
    path = save({"state_dict": state, "meta": {"seed": np.int64(3)}}, tmp_path / "a.pth", zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ArtifactError, match=r"a\.pth is damaged"):
        read_weights(path)


@BOTH_FORMATS
def test_flipped_bytes_raise_nothing_but_the_error_of_the_reader(
    tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    good = save({"state_dict": state, "meta": {"seed": np.int64(3)}}, tmp_path / "good.pth", zipped).read_bytes()
    path = tmp_path / "flipped.pth"
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(0, len(good), 150):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            read_weights(path)
        except ArtifactError:
            refused += 1
    assert refused > 10


def test_other_files_say_what_they_are(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "text.pth"
    path.write_text("not a checkpoint\n")
    with pytest.raises(ArtifactError, match=r"damaged, or not a file of torch\.save"):
        read_weights(path)
    path = tmp_path / "text.safetensors"
    path.write_text("not a checkpoint\n")
    with pytest.raises(ArtifactError, match="damaged or no safetensors file"):
        read_weights(path)
    with pytest.raises(ArtifactError, match=r"holds no state dict but a list"):
        read_weights(save([1, 2], tmp_path / "list.pth"))
    with pytest.raises(ArtifactError, match=r"holds no state dict of tensors; it has: epoch, loss"):
        read_weights(save({"epoch": 3, "loss": 0.5}, tmp_path / "log.pth"))
    with pytest.raises(ArtifactError, match=r"holds a whole network as an object \(torch\.nn\.modules"):
        read_weights(save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "network.pth"))
    with pytest.raises(ArtifactError, match=r"quantized or sparse tensors \(odd"):
        read_weights(save({"state_dict": {"odd": torch.eye(3).to_sparse()}}, tmp_path / "sparse.pth"))
