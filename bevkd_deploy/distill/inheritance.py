"""A student that starts from its teacher's weights: each layer's strongest channels, consistent between layers.

Source: SparseKD's teacher-guided initialisation (arXiv 2205.15156), the variant that selects by the l1 norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bevkd_deploy.models.channel_flow import ChannelFlow, ConvLink, channel_flow
from bevkd_deploy.models.detector import FusionDetector

How = Literal["whole", "sliced", "left"]

#: Part of a recipe -> modules.
PARTS: dict[str, tuple[str, ...]] = {
    "camera": ("img_backbone", "img_neck", "view_transform"),
    "lidar": ("pts_voxel_encoder", "pts_middle_encoder"),
    "bev": ("fusion_layer", "pts_backbone", "pts_neck"),
    "head": ("bbox_head",),
}


@dataclass(frozen=True)
class InheritedTensor:
    """What became of one tensor of the student.

    Attributes:
        key: in the student's state dict.
        how: "whole" (all of the teacher's tensor), "sliced" (some of its channels) or "left" as it was initialised.
        detail: the teacher's key and the shapes, or why it was left.
    """

    key: str
    how: How
    detail: str


@dataclass(frozen=True)
class InheritanceReport:
    """Every tensor of the student's state dict, in its order, and the teacher's channels that each stream kept."""

    tensors: tuple[InheritedTensor, ...]
    kept: dict[str, tuple[int, ...]]

    def counts(self) -> dict[str, int]:
        """Tensors by `how`."""
        return dict(Counter(tensor.how for tensor in self.tensors))

    def lines(self) -> list[str]:
        """A summary, then one line for each tensor that was left, with the reason."""
        counts = self.counts()
        summary = ", ".join(f"{counts.get(how, 0)} {how}" for how in ("whole", "sliced", "left"))
        left = [f"{tensor.key}: {tensor.detail}" for tensor in self.tensors if tensor.how == "left"]
        return [f"inherited from the teacher: {summary} (as initialised)", *left]

    def as_json(self) -> dict[str, Any]:
        """For a file of the run."""
        return {
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "kept": {k: list(v) for k, v in self.kept.items()},
        }


@torch.no_grad()
def inherit(student: FusionDetector, teacher: FusionDetector, parts: Sequence[str] = tuple(PARTS)) -> InheritanceReport:
    """Initialise a student, in place, from its teacher.

    A stream of channels keeps those whose convolutions in the teacher have the largest l1 norm, as many as the student
    has, in their order. Convolutions are sliced by what they write and what they read; batch norms, their statistics
    included, by what they follow. Channels with fixed meanings (classes, depth bins, box parameters) go by name. A
    tensor stays as it was initialised where the student has no counterpart or more channels.

    Args:
        student: changed.
        teacher: read only.
        parts: keys of PARTS; everything else is left.

    Returns:
        What became of every tensor.
    """
    source, target = teacher.state_dict(), student.state_dict()
    teacher_flow, student_flow = channel_flow(teacher), channel_flow(student)
    kept, lost = _keep_channels(student_flow, teacher_flow, source)
    roles = {link.role: link for link in teacher_flow.links}
    modules = tuple(module for part in parts for module in PARTS[part])
    done: dict[str, InheritedTensor] = {}
    for link in student_flow.links:
        reason = _why_not(link, roles.get(link.role), lost, modules)
        for key, teacher_key, axes in _tensors(link, roles.get(link.role, link), target):
            if reason is not None:
                done[key] = InheritedTensor(key, "left", reason)
                continue
            taken = source[teacher_key]
            for axis, streams in axes.items():
                taken = taken.index_select(axis, _joined(streams, kept, teacher_flow).to(taken.device))
            done[key] = _copy(key, taken, target[key], teacher_key, source[teacher_key])
    for key in target:
        done.setdefault(
            key, InheritedTensor(key, "left", "belongs to no convolution or batch norm of the channel flow")
        )
    return InheritanceReport(
        tuple(done[key] for key in target), {name: tuple(index.tolist()) for name, index in kept.items()}
    )


def _keep_channels(
    student: ChannelFlow, teacher: ChannelFlow, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """For each of the student's streams the teacher's channels, ascending, or why it cannot have them."""
    kept: dict[str, Tensor] = {}
    lost: dict[str, str] = {}
    for name, stream in student.streams.items():
        origin = teacher.streams.get(name)
        if origin is None:
            lost[name] = f"the teacher has no {name}"
        elif stream.labels is not None:
            names = origin.labels or ()
            missing = [label for label in stream.labels if label not in names]
            if missing:
                lost[name] = f"the teacher has no {missing[0]}"
            else:
                kept[name] = torch.tensor([names.index(label) for label in stream.labels])
        elif stream.size > origin.size:
            lost[name] = f"{name} has {stream.size} channels here and {origin.size} in the teacher"
        else:
            strength = _strength(name, teacher, weights)
            kept[name] = torch.topk(strength, stream.size).indices.sort().values.cpu()
    return kept, lost


def _strength(stream: str, flow: ChannelFlow, weights: dict[str, Tensor]) -> Tensor:
    """l1 norm of each channel of a stream, summed over the convolutions that write it."""
    total = torch.zeros(flow.streams[stream].size, dtype=torch.float64)
    for link in flow.links:
        start = 0
        for name in link.writes:
            size = flow.streams[name].size
            if name == stream:
                total += weights[f"{link.conv}.weight"][start : start + size].double().abs().flatten(1).sum(dim=1).cpu()
            start += size
    return total


def _why_not(link: ConvLink, origin: ConvLink | None, lost: dict[str, str], modules: tuple[str, ...]) -> str | None:
    """Why a convolution cannot be inherited; None if it can."""
    if link.conv.split(".")[0] not in modules:
        return "not asked for"
    if origin is None:
        return "the teacher has no such layer"
    for what, here, there in (("reads", link.reads, origin.reads), ("writes", link.writes, origin.writes)):
        if here != there:
            return f"{what} {', '.join(here)} here and {', '.join(there)} in the teacher"
    return next((lost[stream] for stream in (*link.writes, *link.reads) if stream in lost), None)


def _tensors(
    link: ConvLink, origin: ConvLink, target: dict[str, Tensor]
) -> Iterator[tuple[str, str, dict[int, tuple[str, ...]]]]:
    """Key, the teacher's key, and the streams along each axis, of a convolution's and its norm's tensors."""
    pairs = [(link.conv, origin.conv)]
    if link.norm is not None and origin.norm is not None:
        pairs.append((link.norm, origin.norm))
    for path, teacher_path in pairs:
        for key, value in target.items():
            name = key.removeprefix(f"{path}.")
            if name == key or "." in name:
                continue
            axes = {0: link.writes} if value.dim() else {}
            if value.dim() > 1:
                axes[1] = link.reads
            yield key, f"{teacher_path}.{name}", axes


def _joined(streams: tuple[str, ...], kept: dict[str, Tensor], teacher: ChannelFlow) -> Tensor:
    """Indices of concatenated streams, counted as the teacher concatenates them."""
    start, parts = 0, []
    for name in streams:
        parts.append(kept[name] + start)
        start += teacher.streams[name].size
    return torch.cat(parts)


def _copy(key: str, taken: Tensor, target: Tensor, teacher_key: str, origin: Tensor) -> InheritedTensor:
    if taken.shape != target.shape:
        reason = f"shape {list(target.shape)} here, {list(taken.shape)} of {teacher_key} {list(origin.shape)}"
        return InheritedTensor(key, "left", reason)
    target.copy_(taken)
    how: How = "whole" if taken.shape == origin.shape else "sliced"
    return InheritedTensor(key, how, f"{teacher_key} {list(origin.shape)} -> {list(target.shape)}")
