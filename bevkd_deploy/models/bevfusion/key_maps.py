"""The tensor names of BEVFusion checkpoints, brought to mmdet3d 1.x's; which network a checkpoint is of.

Three ways of naming the same network:

- "mmdet3d": projects/BEVFusion of open-mmlab/mmdetection3d@fe25f7a, the names of `BevFusion` itself;
- "mit": mit-han-lab/bevfusion@326653d, which CUDA-BEVFusion (NVIDIA-AI-IOT/Lidar_AI_Solution@787ad95) trains with too;
- "converted": mit-han-lab's weights under the names of mmdet3d's first version (open-mmlab/mmdetection3d@4d77b4c8e,
  bevfusion_converted.pth), which differ from today's in `vtransform` alone.

The last two were trained by mit-han-lab's code: on RGB images, and with its coding of boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bevkd_deploy.models.bevfusion.detector import CameraBackbone, ImageChannels
from bevkd_deploy.models.bevfusion.transfusion_head import BoxCoding

Naming = Literal["mmdet3d", "mit", "converted"]

#: mit-han-lab's module -> mmdet3d's.
_MIT_MODULES = {
    "encoders.camera.backbone.": "img_backbone.",
    "encoders.camera.neck.": "img_neck.",
    "encoders.camera.vtransform.": "view_transform.",
    "encoders.lidar.backbone.": "pts_middle_encoder.",
    "fuser.": "fusion_layer.",
    "decoder.backbone.": "pts_backbone.",
    "decoder.neck.": "pts_neck.",
    "heads.object.": "bbox_head.",
}

#: mit-han-lab's names within a layer of the head's transformer -> mmdet3d's.
_MIT_DECODER = {
    "self_attn.": "self_attn.attn.",
    "multihead_attn.": "cross_attn.attn.",
    "linear1.": "ffn.layers.0.0.",
    "linear2.": "ffn.layers.1.",
    "norm1.": "norms.0.",
    "norm2.": "norms.1.",
    "norm3.": "norms.2.",
}

_DECODER_LAYER = re.compile(r"(bbox_head\.decoder\.\d+\.)(.*)")

#: Keys, under mmdet3d's names, that are not loaded, and why.
_IGNORED = (
    (re.compile(r"data_preprocessor\."), "normalisation constants, which the network has itself"),
    (re.compile(r"img_backbone\.norm0\."), "norm of the first stage's output, which the neck does not read"),
    (re.compile(r"bbox_head\.bev_pos$"), "cell centres, computed from the grid"),
    (re.compile(r"heads\.map\."), "BEV segmentation head beside the detection head"),
    (re.compile(r"ema_"), "second set of weights that mmcv's EMAHook keeps; the first is the averaged one"),
)

#: What other checkpoints look like: a key that they have, what they are.
_OTHERS = (
    (r".*_quantizer\._amax$", "a quantised network; the floating-point checkpoint that it was made from is needed"),
    (r"encoders\.radar\.", "mit-han-lab's network with radar, which is not supported"),
    (r"heads\.map\.", "mit-han-lab's BEV segmentation; a detection checkpoint is needed"),
    (r"heads\.object\.task_heads\.", "mit-han-lab's network with a CenterHead, which is not supported"),
    (r"img_backbone\.cb_modules\.|lift_splat_shot_vis\.", "ADLab's BEVFusion, another network of that name"),
    (r"(pts_)?bbox_head\.task_heads\.", "a CenterHead detector such as CenterPoint"),
    (r"(pts_)?bbox_head\.conv_cls\.", "an anchor-head detector such as PointPillars"),
    (r"pts_bbox_head\.|roi_head\.|rpn_head\.", "another detector of mmdet3d"),
)


@dataclass(frozen=True)
class Variant:
    """Which BEVFusion a checkpoint is of.

    Attributes:
        naming: whose names its tensors have.
        camera: its image backbone; None for LiDAR alone.
    """

    naming: Naming
    camera: CameraBackbone | None

    @property
    def image_channels(self) -> ImageChannels:
        """Order of the colours that its weights were trained on."""
        return "bgr" if self.naming == "mmdet3d" else "rgb"

    @property
    def box_coding(self) -> BoxCoding:
        """Whose boxes its head speaks."""
        return "mmdet3d" if self.naming == "mmdet3d" else "mit"

    @property
    def description(self) -> str:
        """In words."""
        whose = {"mmdet3d": "mmdet3d's", "mit": "mit-han-lab's", "converted": "mit-han-lab's (converted to mmdet3d)"}
        camera = {"swin_t": "cameras (Swin-T) and LiDAR", "resnet50": "cameras (ResNet-50) and LiDAR"}
        return f"{whose[self.naming]} BEVFusion, {camera[self.camera] if self.camera else 'LiDAR alone'}"


@dataclass(frozen=True)
class NamedState:
    """A state dict under mmdet3d's names.

    Attributes:
        naming: whose names it had.
        tensors: by mmdet3d's name.
        file_keys: the file's name of each.
        ignored: reason by the file's name, for keys that are not loaded.
    """

    naming: Naming
    tensors: dict[str, Tensor]
    file_keys: dict[str, str]
    ignored: dict[str, str]


def mmdet3d_name(key: str, naming: Naming) -> str:
    """A key under mmdet3d's name; one that is in no module of BEVFusion stays as it is."""
    if naming == "converted":
        return f"view_transform.{key.removeprefix('vtransform.')}" if key.startswith("vtransform.") else key
    if naming == "mmdet3d":
        return key
    module = next((module for module in _MIT_MODULES if key.startswith(module)), None)
    if module is None:
        return key
    return _renamed_decoder(_MIT_MODULES[module] + key.removeprefix(module), _MIT_DECODER)


def named_state(state: dict[str, Tensor]) -> NamedState:
    """A checkpoint's tensors under mmdet3d's names."""
    wrapped = all(key.startswith("module.") for key in state)  # saved from within DistributedDataParallel
    bare = {key: key.removeprefix("module.") if wrapped else key for key in state}
    naming = naming_of(bare.values())
    tensors: dict[str, Tensor] = {}
    file_keys: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key, name in bare.items():
        new = mmdet3d_name(name, naming)
        reason = next((reason for pattern, reason in _IGNORED if pattern.match(new)), None)
        if reason is not None:
            ignored[key] = reason
        else:
            tensors[new], file_keys[new] = state[key], key
    return NamedState(naming, tensors, file_keys, ignored)


def naming_of(keys: Iterable[str]) -> Naming:
    """Whose names these are; "mmdet3d" where they do not tell."""
    keys = list(keys)
    if any(key.startswith(("encoders.", "heads.object.")) for key in keys):
        return "mit"
    return "converted" if any(key.startswith("vtransform.") for key in keys) else "mmdet3d"


def variant_of(named: NamedState) -> Variant | None:
    """The BEVFusion that a state dict belongs to; None if it belongs to none."""

    def has(*prefixes: str) -> bool:
        return all(any(key.startswith(prefix) for key in named.tensors) for prefix in prefixes)

    if not has("pts_middle_encoder.conv_input.", "bbox_head.heatmap_head.", "bbox_head.decoder.0."):
        return None
    if not has("img_backbone."):
        return Variant(named.naming, None)
    if has("view_transform.", "img_backbone.patch_embed."):
        return Variant(named.naming, "swin_t")
    if has("view_transform.", "img_backbone.layer1.0.conv3."):
        return Variant(named.naming, "resnet50")
    return None


def looks_like(keys: Iterable[str], header: dict[str, str]) -> str:
    """What a checkpoint that is no BEVFusion looks like, and what to do with it, in one sentence.

    Args:
        keys: names of its tensors, as they are in the file.
        header: the metadata of a .safetensors file.
    """
    if "bevkd" in header:
        return "It is a network of bevkd's own family: load it with teacher.source: native"
    keys = list(keys)
    what = next((what for pattern, what in _OTHERS if any(re.match(pattern, key) for key in keys)), None)
    modules = ", ".join(sorted({key.split(".", 1)[0] for key in keys})[:8])
    return (
        f"It looks like {what or f'something with the modules {modules}'}. "
        "Any detector of mmdet3d can teach through teacher.source: mmdet3d, with its config"
    )


def _renamed_decoder(key: str, names: dict[str, str]) -> str:
    found = _DECODER_LAYER.match(key)
    if found is None:
        return key
    layer, rest = found.groups()
    old = next((old for old in names if rest.startswith(old)), None)
    return key if old is None else layer + names[old] + rest.removeprefix(old)
