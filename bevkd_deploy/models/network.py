"""What every detector in PyTorch is, whatever its architecture: inputs by name in, head maps out, boxes on demand."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sensor_spec import SensorSpec

#: Boxes [B, Q, 9] (lidar frame, geometric centre), scores [B, Q] and labels [B, Q] (index into the spec's classes).
Boxes = tuple[Tensor, Tensor, Tensor]

#: What a network that decodes as part of its forward pass returns beside its maps.
BOX_OUTPUTS = ("boxes", "scores", "labels")


class DetectionNetwork(nn.Module):
    """A detector of the student's family, BEVFusion, or a model of mmdet3d.

    Called with the inputs of its spec, [B, ...], it returns head maps by name: "heatmap" (class logits [B, K, ., .] in
    the spec's axis order), perhaps the box maps of a centre head, perhaps `BOX_OUTPUTS`.
    """

    spec: GraphSpec | SensorSpec

    def decode(self, maps: dict[str, Tensor]) -> Boxes:
        """The boxes of what it returned; the maps stay untouched."""
        raise NotImplementedError
