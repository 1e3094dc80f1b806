"""Weights out of other people's files (.pth, .safetensors), without running anything that is in them.

torch's `weights_only` loader refuses a checkpoint of mmengine or mmcv for the training state beside the weights:
histories, NumPy scalars, configuration objects. Here each such name gets an empty stand-in, so that the loader passes
over the object; nothing of that name is imported or called. All other names are left to the loader, which refuses what
it does not know.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file

#: Packages whose objects a training loop puts beside the weights.
_PASSED_OVER = ("mmengine", "mmcv", "mmdet", "mmdet3d", "mmseg", "projects", "numpy", "addict", "pathlib", "datetime")

#: Beside them: mmengine's HistoryBuffer names its methods by getattr, a defaultdict its default by its type.
_PASSED_OVER_NAMES = (
    "argparse.Namespace", "builtins.getattr", "builtins.dict", "builtins.float", "builtins.int", "builtins.list",
)  # fmt: skip

#: Where the state dict is: mmengine and mmcv, torchvision's references.
_STATE_KEYS = ("state_dict", "model")

_RESAVE = (
    "Where you trust the file, write its weights alone: torch.save({'state_dict': model.state_dict()}, 'weights.pth')"
)


@dataclass(frozen=True)
class WeightsFile:
    """What was found in a file of weights.

    Attributes:
        path: the file.
        sha256: of its bytes.
        state: the state dict, on the CPU.
        versions: of its modules, by prefix, as torch's state dicts carry them (`_metadata`); {} where it has none.
        meta: what the training framework wrote beside it: configuration text, classes, versions.
        header: the metadata of a .safetensors file.
        others: names of what else is in it (optimizer, message_hub, ...), which is not read.
        passed_over: classes whose objects were passed over, by name.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    versions: dict[str, Any]
    meta: dict[str, Any]
    header: dict[str, str]
    others: tuple[str, ...]
    passed_over: tuple[str, ...]


class _Nothing:
    """Stands for an object that is passed over; takes any arguments and keeps none."""

    def __new__(cls, *_: Any) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(path: Path, expected_sha256: str | None = None) -> WeightsFile:
    """Read a checkpoint of torch.save (both of its formats) or a .safetensors file.

    Raises:
        ArtifactError: the file is missing, has another hash, is damaged, holds no state dict, or holds objects of
            classes that are neither weights nor known training state.
    """
    if not path.is_file():
        raise ArtifactError(f"checkpoint not found: {path}")
    digest = sha256_file(path)
    if expected_sha256 is not None and digest != expected_sha256.lower():
        raise ArtifactError(f"checkpoint {path} has sha256 {digest}, the recipe expects {expected_sha256}")
    if path.suffix == ".safetensors":
        state, header = _read_safetensors(path)
        return WeightsFile(path, digest, state, {}, {}, header, (), ())
    content, passed_over = _read_torch(path)
    state, meta, others = _split(path, content)
    versions = getattr(state, "_metadata", None)
    tensors = {str(name): value.detach() for name, value in state.items()}
    return WeightsFile(path, digest, tensors, dict(versions or {}), meta, {}, others, passed_over)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(f"checkpoint {path} is damaged or no safetensors file: {error}") from error


def _read_torch(path: Path) -> tuple[Any, tuple[str, ...]]:
    """What torch.save wrote, and the names in it that have stand-ins."""
    try:
        names = sorted(set(_class_names(path)))
    except Exception as error:  # damage makes the readers of zip and pickle raise nearly anything
        raise ArtifactError(f"checkpoint {path} is damaged, or not a file of torch.save: {error}") from error
    _refuse_objects(path, names)
    passed_over = tuple(name for name in names if _is_passed_over(name))
    stand_ins: list[Any] = [(_CONTAINERS.get(name, _Nothing), name) for name in passed_over]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats: what they need is read, or it is an error below
            return torch.load(path, map_location="cpu", weights_only=True), passed_over
    except pickle.UnpicklingError as error:
        reason = _reason(error)
        raise ArtifactError(f"checkpoint {path} is refused, for it holds more than weights: {reason}. {_RESAVE}") from (
            error
        )
    except Exception as error:  # as above
        raise ArtifactError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def _class_names(path: Path) -> Iterator[str]:
    """Names of the classes and functions that the pickles of a file mention.

    They decide what gets a stand-in, nothing else: what is loaded is torch's decision.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise ValueError("it is a TorchScript program")
            records = [name for name in names if name.endswith("/data.pkl")]
            if not records:
                raise ValueError("it is a zip archive without torch's data.pkl")
            with archive.open(records[0]) as record:
                yield from _names_in_pickle(record)
        return
    with path.open("rb") as handle:
        # Before torch 1.6, and in what mmdet3d publishes: magic number, protocol, system, and the object itself.
        for _ in range(4):
            yield from _names_in_pickle(handle)


def _names_in_pickle(handle: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(handle):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            yield f"{'builtins' if module == '__builtin__' else module}.{name}"


def _refuse_objects(path: Path, names: list[str]) -> None:
    modules = [name for name in names if name.startswith("torch.nn.modules.")]
    if modules:
        raise ArtifactError(
            f"checkpoint {path} holds a whole network as an object ({modules[0]}, ...) that only its own code can "
            f"load, not a state dict. {_RESAVE}"
        )


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return dict(args[0]) if args and isinstance(args[0], dict) else {}


def _plain_list(*_: Any) -> list[Any]:
    return []


#: Containers of other types: the loader fills only plain ones.
_CONTAINERS = {
    "collections.defaultdict": _plain_dict,
    "mmengine.config.config.ConfigDict": _plain_dict,
    "mmcv.utils.config.ConfigDict": _plain_dict,
    "collections.deque": _plain_list,
}


def _is_passed_over(name: str) -> bool:
    return name.split(".", 1)[0] in _PASSED_OVER or name in _PASSED_OVER_NAMES or name in _CONTAINERS


def _reason(error: pickle.UnpicklingError) -> str:
    """torch's reason in short: its advice to allow the class is not ours."""
    text = str(error)
    start = text.find("WeightsUnpickler error: ")
    text = text[start + len("WeightsUnpickler error: ") :] if start >= 0 else text
    return text.strip().splitlines()[0].split(" Please use ", 1)[0].rstrip(".")


def _split(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """State dict, meta, and the names of everything else."""
    if not isinstance(content, dict):
        raise ArtifactError(f"checkpoint {path} holds no state dict but a {type(content).__name__}. {_RESAVE}")
    key = next((key for key in _STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content if key is None else content[key]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(sorted(map(str, state))[:8])
        raise ArtifactError(f"checkpoint {path} holds no state dict of tensors; it has: {found or 'nothing'}")
    odd = [name for name, value in state.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise ArtifactError(f"checkpoint {path} holds quantized or sparse tensors ({odd[0]}, ...), not plain weights")
    meta = content.get("meta") if key is not None else None
    others = () if key is None else tuple(sorted(str(name) for name in content if name not in (key, "meta")))
    return state, meta if isinstance(meta, dict) else {}, others
