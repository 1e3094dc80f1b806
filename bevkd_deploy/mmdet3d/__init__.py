"""bevkd inside mmdet3d: its tools/train.py and tools/test.py train and evaluate our student and our distillation.

    custom_imports = dict(imports=['bevkd_deploy.mmdet3d'])

in an mmdet3d configuration registers `BevkdStudent`, `BevkdDistillation`, `BevkdDataPreprocessor`, `BevkdInputs` and
`BevkdRunHook`, and lets mmengine load our checkpoints: `load_from = 'bevkd:runs/.../last.safetensors'`.
"""

from __future__ import annotations

from bevkd_deploy.contracts.errors import CannotRunHere

try:
    import mmdet3d.registry  # noqa: F401
except ModuleNotFoundError as error:
    raise CannotRunHere(
        f"bevkd_deploy.mmdet3d runs inside mmdet3d, but {(error.name or '').partition('.')[0]} is not installed; run: "
        "pip install 'bevkd-deploy[mmdet3d]', or in a checkout: make mmdet3d"
    ) from error

from bevkd_deploy.mmdet3d.detectors import BevkdDistillation, BevkdStudent
from bevkd_deploy.mmdet3d.inputs import BevkdDataPreprocessor, BevkdInputs
from bevkd_deploy.mmdet3d.run_hook import BevkdRunHook

__all__ = ["BevkdDataPreprocessor", "BevkdDistillation", "BevkdInputs", "BevkdRunHook", "BevkdStudent"]
