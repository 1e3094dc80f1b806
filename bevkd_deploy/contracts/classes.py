"""The ten nuScenes detection classes, their attributes and their evaluation ranges.

Order is mmdet3d's (NuScenesDataset.METAINFO); wherever an order matters it travels by name.
"""

from __future__ import annotations

CLASS_NAMES: tuple[str, ...] = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)

#: nuScenes raw category -> detection class (nuscenes-devkit, eval/detection/utils.py). Others are ignored.
CATEGORY_TO_CLASS: dict[str, str] = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}

#: Not a detection class: cycles parked in a rack are left out of the evaluation.
BIKE_RACK_CATEGORY = "static_object.bicycle_rack"

CAMERA_NAMES: tuple[str, ...] = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)

LIDAR_NAME = "LIDAR_TOP"

#: Above this speed (m/s) a vehicle's, cycle's or pedestrian's attribute is the moving one.
MOVING_SPEED_MPS = 0.2


def attribute_for(class_name: str, speed_mps: float) -> str:
    """nuScenes attribute of a detection by class and speed, '' for classes without attributes.

    Source: the rule of mmdet3d's NuScenesMetric (output_to_nusc_box, attribute by velocity > 0.2 m/s).
    """
    moving = speed_mps > MOVING_SPEED_MPS
    if class_name in ("car", "truck", "trailer", "bus", "construction_vehicle"):
        if moving:
            return "vehicle.moving"
        return "vehicle.stopped" if class_name == "bus" else "vehicle.parked"
    if class_name in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if class_name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return ""
