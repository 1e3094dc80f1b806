"""What the taps of a recipe give, found by running both networks once before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.recipe_distill import DistillConfig, TapLossConfig
from bevkd_deploy.distill.alignment import align, class_order, tap_layout, to_yx
from bevkd_deploy.distill.taps import TapPath, Taps
from bevkd_deploy.geometry.grid import BevLayout
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.teachers.frozen import FrozenTeacher

#: Modules whose outputs are camera images, in mmdet3d's names; everything else that has four axes is a BEV map.
_IMAGE_MODULES = ("img_backbone", "img_neck", "view_transform.depthnet", "view_transform.dtransform")


@dataclass(frozen=True)
class TappedNetwork:
    """One side of a distillation.

    Attributes:
        role: "student" or "teacher".
        model: where the taps' paths begin.
        run: one forward pass on a fixed input; returns the head's maps.
        layout: range and axis order of its BEV maps.
        classes: of its heatmap's channels.
    """

    role: Literal["student", "teacher"]
    model: nn.Module
    run: Callable[[], Mapping[str, Tensor]]
    layout: BevLayout
    classes: tuple[str, ...]

    @classmethod
    def student(cls, detector: FusionDetector, inputs: dict[str, Tensor]) -> TappedNetwork:
        """A student on its graph inputs [B, ...]."""
        layout = BevLayout.of(detector.spec)
        return cls("student", detector, lambda: detector(**inputs), layout, detector.spec.classes)

    @classmethod
    def teacher(cls, teacher: FrozenTeacher, inputs: dict[str, Tensor]) -> TappedNetwork:
        """A frozen teacher on its inputs [B, ...]."""
        layout = BevLayout.of(teacher.spec)
        return cls("teacher", teacher.model, lambda: teacher(inputs), layout, teacher.spec.classes)


@dataclass(frozen=True)
class TapInfo:
    """What one tap gave.

    Attributes:
        path: of the tap, without wildcards.
        shape: of the captured tensor, batch first.
        dtype: as in "float32".
        low, high: smallest and largest value.
        layout: what the map covers; None for a map of the camera branch.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    layout: BevLayout | None

    @property
    def channels(self) -> int:
        """Size of the channel axis."""
        return self.shape[1]


@dataclass(frozen=True)
class TapPair:
    """One student tap and the teacher tap it learns from.

    The loss of a section whose patterns give several pairs is the sum of theirs.
    """

    student: TapInfo
    teacher: TapInfo

    def aligned(self, student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps as [B, C, Y, X] on the student tap's grid; maps of the camera branch as they are."""
        if self.student.layout is None or self.teacher.layout is None:
            return student_map, teacher_map
        return to_yx(student_map, self.student.layout), align(teacher_map, self.teacher.layout, self.student.layout)

    def foreground(self, gaussians: Tensor, network: BevLayout, student_map: Tensor) -> Tensor:
        """Ground-truth Gaussians [B, K, Y, X] of the student's heatmap on the cells of the student's map.

        A deeper level keeps the height of a peak. Camera maps have no ground truth here: every pixel counts as 1.
        """
        if self.student.layout is None:
            return torch.ones_like(student_map[:, :1])
        return align(gaussians, network, self.student.layout, pool="max")


@dataclass(frozen=True)
class TapReport:
    """Every pair of taps of a recipe, and the heads' heatmaps.

    Attributes:
        pairs: by the loss's name, in the order of the two paths' matches.
        heatmaps: of both networks; None where there were no taps to look at, so that nothing was run.
    """

    pairs: dict[str, tuple[TapPair, ...]]
    heatmaps: TapPair | None

    def taps(self, role: Literal["student", "teacher"], losses: Collection[str] | None = None) -> tuple[str, ...]:
        """Every tap of one network, once; with `losses`, of these losses alone."""
        named = {name: pairs for name, pairs in self.pairs.items() if losses is None or name in losses}
        infos = [getattr(pair, role) for pairs in named.values() for pair in pairs]
        return tuple(dict.fromkeys(info.path for info in infos))

    def rows(self) -> list[tuple[str, str, TapInfo]]:
        """(loss, role, tap) of each line of the table; the heatmaps first."""
        named = [("heatmap", self.heatmaps)] if self.heatmaps else []
        named += [(name, pair) for name, pairs in self.pairs.items() for pair in pairs]
        return [(name, role, getattr(pair, role)) for name, pair in named for role in ("student", "teacher")]


def tap_losses(config: DistillConfig) -> dict[str, TapLossConfig]:
    """The enabled losses that compare taps, by name."""
    return {name: term for name, term in config.losses.enabled().items() if isinstance(term, TapLossConfig)}


def report_taps(student: TappedNetwork, teacher: TappedNetwork, config: DistillConfig) -> TapReport:
    """Run both networks once, without training anything, and describe what the recipe's taps give.

    Raises:
        UsageError: a tap is missing, matches another number of modules than it says, gives no tensor or no map; the
            two maps of a pair cannot be compared; the teacher lacks a class of the student.
    """
    losses = tap_losses(config)
    class_order(teacher.classes, student.classes)
    student_taps, student_maps = _capture(student, {name: loss.student for name, loss in losses.items()}, losses)
    teacher_taps, teacher_maps = _capture(teacher, {name: loss.teacher for name, loss in losses.items()}, losses)
    pairs: dict[str, tuple[TapPair, ...]] = {}
    for name, loss in losses.items():
        students = [_info(student, path, tensor, loss) for path, tensor in student_taps[name].items()]
        teachers = [_info(teacher, path, tensor, loss) for path, tensor in teacher_taps[name].items()]
        pairs[name] = tuple(TapPair(*both) for both in zip(students, teachers, strict=True))
        if loss.space == "image":
            _check_same_images(name, pairs[name])
    return TapReport(pairs, TapPair(_heatmap(student, student_maps), _heatmap(teacher, teacher_maps)))


@torch.no_grad()
def _capture(
    network: TappedNetwork, paths: dict[str, str], losses: dict[str, TapLossConfig]
) -> tuple[dict[str, dict[str, Tensor]], Mapping[str, Tensor]]:
    """What the taps of each loss gave, by loss and tap, and the head's maps."""
    chosen = {name: TapPath(path, losses[name].count) for name, path in paths.items()}
    with _evaluating(network.model), Taps(network.model, chosen.values(), detach=True, role=network.role) as taps:
        maps = network.run()
    captured, names = taps.take(), taps.names
    return {name: {tap: captured[tap] for tap in names[path.path]} for name, path in chosen.items()}, maps


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _info(network: TappedNetwork, path: str, tensor: Tensor, loss: TapLossConfig) -> TapInfo:
    is_image = any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in _IMAGE_MODULES)
    where = f"{network.role} tap '{path}'"
    if is_image and loss.space == "bev":
        raise UsageError(
            f"{where} is a map of the camera branch: its pixels have no place on the ground, so it cannot be aligned "
            "in metres. Tap view_transform or a later module, or compare image maps of one size with space: image"
        )
    if not is_image and loss.space == "image":
        raise UsageError(f"{where} is no map of the camera branch ({', '.join(_IMAGE_MODULES)}), but space is image")
    layout = None
    if not is_image:
        declared = loss.student_layout if network.role == "student" else loss.teacher_layout
        layout = tap_layout(where, tensor.shape, network.layout, declared)
    elif tensor.dim() != 4:
        raise UsageError(f"{where} has shape {list(tensor.shape)}; an image map has four axes")
    return _described(path, tensor, layout)


def _described(path: str, tensor: Tensor, layout: BevLayout | None) -> TapInfo:
    low, high = (float(value) for value in torch.aminmax(tensor.float()))
    return TapInfo(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), low, high, layout)


def _check_same_images(loss: str, pairs: tuple[TapPair, ...]) -> None:
    for student, teacher in ((pair.student, pair.teacher) for pair in pairs):
        if (student.shape[0], *student.shape[2:]) != (teacher.shape[0], *teacher.shape[2:]):
            raise UsageError(
                f"loss {loss}: image maps of one size are compared, but student tap '{student.path}' has shape "
                f"{list(student.shape)} and teacher tap '{teacher.path}' {list(teacher.shape)}"
            )


def _heatmap(network: TappedNetwork, maps: Mapping[str, Tensor]) -> TapInfo:
    if maps.get("heatmap") is None:
        raise UsageError(f"the {network.role} returns no heatmap; it returns {', '.join(maps) or 'nothing'}")
    heatmap = maps["heatmap"]
    path = "output[heatmap]"
    info = _described(path, heatmap, tap_layout(f"{network.role} {path}", heatmap.shape, network.layout))
    if info.channels != len(network.classes):
        raise UsageError(
            f"the {network.role}'s heatmap has {info.channels} channels, its classes are {len(network.classes)}: "
            f"{', '.join(network.classes)}"
        )
    return info
