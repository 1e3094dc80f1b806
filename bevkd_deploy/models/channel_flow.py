"""Which convolution of a detector reads and writes which channels: what slicing its weights has to respect."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from bevkd_deploy.models.bev import Second, SecondFPN
from bevkd_deploy.models.center_head import BOX_MAPS
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.lidar import POINT_FEATURES
from bevkd_deploy.models.resnet import ResNet


@dataclass(frozen=True)
class Stream:
    """Channels that travel together from one convolution to others.

    Attributes:
        size: number of channels.
        labels: what each channel means, where that is fixed: classes, depth bins, box parameters; None where any
            channel may carry anything.
    """

    size: int
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ConvLink:
    """One convolution, with its norm.

    Attributes:
        role: the same for corresponding convolutions of two detectors, whatever their depths.
        conv: module path.
        norm: module path of the batch norm behind it, None where there is none.
        reads: streams concatenated at its input.
        writes: streams concatenated at its output; several links write one stream where a residual adds them.
    """

    role: str
    conv: str
    norm: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass
class ChannelFlow:
    """All streams of a detector and its convolutions in the order of the forward pass."""

    streams: dict[str, Stream] = field(default_factory=dict)
    links: list[ConvLink] = field(default_factory=list)

    def stream(self, name: str, size: int, labels: tuple[str, ...] | None = None) -> str:
        """Declare a stream; declaring it again, as each summand of a residual does, changes nothing."""
        self.streams.setdefault(name, Stream(size, labels))
        return name

    def labelled(self, name: str, labels: tuple[str, ...]) -> str:
        """Declare a stream whose channels have fixed meanings."""
        return self.stream(name, len(labels), labels)

    def block(self, role: str, path: str, reads: tuple[str, ...], writes: str) -> str:
        """Add a `conv_norm_relu`; returns what it writes."""
        self.links.append(ConvLink(role, f"{path}.0", f"{path}.1", reads, (writes,)))
        return writes

    def plain(self, role: str, path: str, reads: str, *writes: str) -> None:
        """Add a convolution without a norm."""
        self.links.append(ConvLink(role, path, None, (reads,), writes))


def channel_flow(detector: FusionDetector) -> ChannelFlow:
    """The flow of a detector of this family.

    Layers of a SECOND block correspond from its first one, and last to last, so that what follows a block always reads
    the same stream; ResNet blocks and pyramid levels correspond by stage.
    """
    flow = ChannelFlow()
    camera_bev = _camera(flow, detector)
    lidar_bev = _lidar(flow, detector)
    fuser = detector.fusion_layer.conv
    fused = flow.block("fusion_layer", "fusion_layer.conv", (camera_bev, lidar_bev), _new(flow, "fused", fuser))
    levels = _second(flow, detector.pts_backbone, fused)
    _head(flow, detector, _neck(flow, detector.pts_neck, levels))
    return flow


def _new(flow: ChannelFlow, name: str, block: nn.Module) -> str:
    """The stream that a `conv_norm_relu` writes."""
    conv = block.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    return flow.stream(name, conv.out_channels)


def _resnet(flow: ChannelFlow, resnet: ResNet) -> dict[str, str]:
    """The image backbone; stream of each stage by stage name."""
    current = flow.stream("image stem", resnet.conv1.out_channels)
    rgb = flow.labelled("rgb", ("red", "green", "blue"))
    flow.links.append(ConvLink("img_backbone.conv1", "img_backbone.conv1", "img_backbone.bn1", (rgb,), (current,)))
    stages = {}
    for number in range(1, 5):
        stage = f"layer{number}"
        for index, block in enumerate(getattr(resnet, stage)):
            path = f"img_backbone.{stage}.{index}"
            inner = flow.stream(f"image {stage}.{index} inner", block.conv1.out_channels)
            flow.links.append(ConvLink(f"{path}.1", f"{path}.conv1", f"{path}.bn1", (current,), (inner,)))
            if block.downsample is not None:  # else the block adds to the stream that it reads
                out = flow.stream(f"image {stage}", block.conv2.out_channels)
                shortcut = f"{path}.downsample"
                flow.links.append(ConvLink(shortcut, f"{shortcut}.0", f"{shortcut}.1", (current,), (out,)))
                current = out
            flow.links.append(ConvLink(f"{path}.2", f"{path}.conv2", f"{path}.bn2", (inner,), (current,)))
        stages[stage] = current
    return stages


def _camera(flow: ChannelFlow, detector: FusionDetector) -> str:
    """Images to the camera's BEV stream."""
    stages = _resnet(flow, detector.img_backbone)
    laterals = detector.img_neck.lateral_convs
    for index, stage in enumerate(detector.img_backbone.stages):
        lateral = laterals[index]
        assert isinstance(lateral, nn.Conv2d)
        pyramid = flow.stream("image pyramid", lateral.out_channels)
        flow.plain(f"img_neck.lateral.{stage}", f"img_neck.lateral_convs.{index}", stages[stage], pyramid)
    neck = _new(flow, "image neck", detector.img_neck.fpn_conv)
    flow.block("img_neck.fpn_conv", "img_neck.fpn_conv", (pyramid,), neck)
    transform, spec = detector.view_transform, detector.spec
    inner = _new(flow, "depth net inner", transform.depthnet[0])
    flow.block("view_transform.depthnet.0", "view_transform.depthnet.0", (neck,), inner)
    bins = tuple(
        f"depth bin {number} of {spec.depth_bins}, {spec.depth_min_m:g} to {spec.depth_max_m:g} m"
        for number in range(spec.depth_bins)
    )
    context = flow.stream("camera context", transform.out_channels)
    depth = flow.labelled("depth bins", bins)
    flow.plain("view_transform.depthnet.1", "view_transform.depthnet.1", inner, depth, context)
    bev = _new(flow, "camera bev", transform.downsample)
    return flow.block("view_transform.downsample", "view_transform.downsample", (context,), bev)


def _lidar(flow: ChannelFlow, detector: FusionDetector) -> str:
    """Pillars to the LiDAR's BEV stream."""
    points = flow.labelled("point features", tuple(f"point feature {index}" for index in range(POINT_FEATURES)))
    layer = detector.pts_voxel_encoder.pfn_layers[0]
    path = "pts_voxel_encoder.pfn_layers.0"
    current = flow.block(path, path, (points,), _new(flow, "pillars", layer))
    down = detector.pts_middle_encoder.down
    for index, layer in enumerate(down):
        role = f"pts_middle_encoder.{_place(index, len(down))}"
        out = _new(flow, role, layer)
        current = flow.block(role, f"pts_middle_encoder.down.{index}", (current,), out)
    return current


def _second(flow: ChannelFlow, second: Second, current: str) -> list[str]:
    levels = []
    for level, block in enumerate(second.blocks):
        layers = list(block.children())
        for index, layer in enumerate(layers):
            role = f"pts_backbone.{level}.{_place(index, len(layers))}"
            out = _new(flow, role, layer)
            current = flow.block(role, f"pts_backbone.blocks.{level}.{index}", (current,), out)
        levels.append(current)
    return levels


def _neck(flow: ChannelFlow, neck: SecondFPN, levels: list[str]) -> tuple[str, ...]:
    streams = []
    for level, (deblock, source) in enumerate(zip(neck.deblocks, levels, strict=True)):
        # The finest level is the block itself, the others are block and upsampling.
        path, block = f"pts_neck.deblocks.{level}", deblock
        if level:
            path, block = f"{path}.0", deblock.get_submodule("0")
        streams.append(flow.block(f"pts_neck.{level}", path, (source,), _new(flow, f"neck level {level}", block)))
    return tuple(streams)


def _head(flow: ChannelFlow, detector: FusionDetector, neck: tuple[str, ...]) -> None:
    head = detector.bbox_head
    shared = flow.block("bbox_head.shared", "bbox_head.shared_conv", neck, _new(flow, "head", head.shared_conv))
    heat = _new(flow, "heatmap inner", head.heatmap[0])
    flow.block("bbox_head.heatmap.0", "bbox_head.heatmap.0", (shared,), heat)
    flow.plain("bbox_head.heatmap.1", "bbox_head.heatmap.1", heat, flow.labelled("classes", detector.spec.classes))
    stem = flow.block("bbox_head.box_stem", "bbox_head.box_stem", (shared,), _new(flow, "box stem", head.box_stem))
    for name, size in BOX_MAPS.items():
        parameters = flow.labelled(name, tuple(f"{name} {index}" for index in range(size)))
        flow.plain(f"bbox_head.{name}", f"bbox_head.{name}", stem, parameters)


def _place(index: int, length: int) -> str:
    """Name of a layer in a chain, the same in chains of other lengths: counted, or "last"."""
    return "last" if index == length - 1 else str(index)
