"""Named sizes of the synthetic world: image size, LiDAR resolution, scene length."""

from __future__ import annotations

from dataclasses import dataclass

from bevkd_deploy.contracts.errors import UsageError

#: nuScenes raw image width; the intrinsics below it scale with a profile's image width.
FULL_IMAGE_WIDTH_PX = 1600

#: Keyframes per second, as in nuScenes.
KEYFRAME_RATE_HZ = 2.0


@dataclass(frozen=True)
class Profile:
    """How much of the synthetic world is recorded, and how finely.

    Attributes:
        name: stored in dataset.json and in the scene descriptions.
        image_hw_px: height and width of every camera image; the ratio must be that of 900x1600.
        keyframes: annotated instants per scene, at 2 Hz.
        azimuth_steps: LiDAR columns per turn (32 beams each).
        lidar_range_m: no LiDAR return beyond this distance.
        object_range_m: objects whose centre is farther than this from the ego vehicle neither exist nor are annotated,
            so that everything a sensor can see of an object class is annotated.
        sweeps_between: LiDAR sweeps written between two keyframes.
    """

    name: str
    image_hw_px: tuple[int, int]
    keyframes: int
    azimuth_steps: int
    lidar_range_m: float
    object_range_m: float
    sweeps_between: int

    def __post_init__(self) -> None:
        height, width = self.image_hw_px
        if abs(height / width - 900 / 1600) > 1e-3:
            raise UsageError(
                f"profile {self.name}: image size must have the ratio of 900x1600, got {height}x{width}; "
                "choose a width that is a multiple of 16 and height = width * 9 / 16"
            )

    @property
    def image_scale(self) -> float:
        """Scale of the images against the 1600 px wide nuScenes ones."""
        return self.image_hw_px[1] / FULL_IMAGE_WIDTH_PX


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("quickstart", (396, 704), 20, 540, 45.0, 42.0, 0),
        Profile("standard", (900, 1600), 40, 1080, 80.0, 76.0, 3),
        Profile("tiny", (198, 352), 4, 270, 45.0, 42.0, 0),
    )
}


def get_profile(profile: str | Profile) -> Profile:
    """The profile of that name; a Profile is returned as it is.

    Raises:
        UsageError: no such profile.
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise UsageError(f"unknown synthetic profile: got '{profile}', expected one of {', '.join(PROFILES)}")
    return PROFILES[profile]
