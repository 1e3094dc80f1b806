"""Named sizes of the synthetic world (profiles) and how hard it is to see (difficulties)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bevkd_deploy.contracts.errors import UsageError

#: nuScenes raw image width; the intrinsics below it scale with a profile's image width.
FULL_IMAGE_WIDTH_PX = 1600

#: Keyframes per second, as in nuScenes.
KEYFRAME_RATE_HZ = 2.0


@dataclass(frozen=True)
class Difficulty:
    """What makes objects hard to see. Every field is a number of the world, none of an algorithm.

    Attributes:
        name: stored in dataset.json.
        traffic_gap_m: distance between vehicles of a lane, uniform between the two.
        parked_gap_m: free space between parked vehicles, the main occluders of sidewalks, uniform between the two.
        walker_gap_m: distance between groups on a sidewalk, uniform between the two.
        furniture_gap_m: distance between pieces of street furniture (bollards, planters, bushes, cabinets) that have
            the size of cones, barriers, pedestrians and cars but are not annotated, uniform between the two.
        object_range: share of the profile's object_range_m in which objects exist.
        lidar_noise_m: standard deviation of a range measured on an object; on the ground 0.4 of it.
        lidar_loss: share of returns lost near the sensor, and lost in addition at the end of its range.
        image_noise: standard deviation of pixel values, 0..255.
        exposure: gain of a picture, uniform between the two.
        haze_m: distance at which 63 % of a colour is lost in the haze.
        dusk: share of scenes in low light.
    """

    name: str
    traffic_gap_m: tuple[float, float] = (14.0, 26.0)
    parked_gap_m: tuple[float, float] = (0.6, 9.0)
    walker_gap_m: tuple[float, float] = (3.5, 12.0)
    furniture_gap_m: tuple[float, float] = (8.0, 24.0)
    object_range: float = 1.0
    lidar_noise_m: float = 0.015
    lidar_loss: tuple[float, float] = (0.02, 0.22)
    image_noise: float = 3.0
    exposure: tuple[float, float] = (0.88, 1.10)
    haze_m: float = 180.0
    dusk: float = 0.0


NORMAL = Difficulty("normal")
EASY = Difficulty(
    "easy",
    traffic_gap_m=(20.0, 34.0),
    parked_gap_m=(8.0, 24.0),
    walker_gap_m=(6.0, 18.0),
    furniture_gap_m=(20.0, 50.0),
    object_range=0.75,
    lidar_noise_m=0.008,
    lidar_loss=(0.0, 0.05),
    image_noise=1.5,
    exposure=(0.97, 1.03),
    haze_m=400.0,
)
HARD = Difficulty(
    "hard",
    traffic_gap_m=(10.0, 19.0),
    parked_gap_m=(0.4, 3.0),
    walker_gap_m=(2.4, 8.0),
    furniture_gap_m=(4.0, 12.0),
    object_range=1.1,
    lidar_noise_m=0.03,
    lidar_loss=(0.10, 0.60),
    image_noise=8.0,
    exposure=(0.6, 1.25),
    haze_m=70.0,
    dusk=0.4,
)
DIFFICULTIES: dict[str, Difficulty] = {difficulty.name: difficulty for difficulty in (EASY, NORMAL, HARD)}


@dataclass(frozen=True)
class Profile:
    """How much of the synthetic world is recorded, how finely, and how hard it is to see.

    Attributes:
        name: stored in dataset.json and in the scene descriptions.
        image_hw_px: height and width of every camera image; the ratio must be that of 900x1600.
        keyframes: annotated instants per scene, at 2 Hz.
        azimuth_steps: LiDAR columns per turn (32 beams each).
        lidar_range_m: no LiDAR return beyond this distance.
        object_range_m: objects whose centre is farther than this (times the difficulty's share) from the ego vehicle
            neither exist nor are annotated, so that everything a sensor can see of an object class is annotated.
        sweeps_between: LiDAR sweeps written between two keyframes.
        difficulty: occlusion, density, range and noise.
    """

    name: str
    image_hw_px: tuple[int, int]
    keyframes: int
    azimuth_steps: int
    lidar_range_m: float
    object_range_m: float
    sweeps_between: int
    difficulty: Difficulty = NORMAL

    def __post_init__(self) -> None:
        height, width = self.image_hw_px
        if abs(height / width - 900 / 1600) > 1e-3 or height % 2 or width % 2:
            raise UsageError(
                f"profile {self.name}: image size must have the ratio of 900x1600, got {height}x{width}; "
                "choose a width that is a multiple of 32 and height = width * 9 / 16"
            )

    @property
    def image_scale(self) -> float:
        """Scale of the images against the 1600 px wide nuScenes ones."""
        return self.image_hw_px[1] / FULL_IMAGE_WIDTH_PX

    @property
    def reach_m(self) -> float:
        """Objects exist and are annotated up to this distance from the ego vehicle."""
        return self.object_range_m * self.difficulty.object_range


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("quickstart", (396, 704), 20, 540, 45.0, 42.0, 0),
        Profile("standard", (900, 1600), 40, 1080, 80.0, 76.0, 3),
        Profile("tiny", (198, 352), 4, 270, 45.0, 42.0, 0),
    )
}


def get_profile(profile: str | Profile, difficulty: str | None = None) -> Profile:
    """The profile of that name, or a given one, with the difficulty of that name (None: the profile's own).

    Raises:
        UsageError: no such profile or difficulty.
    """
    if not isinstance(profile, Profile):
        if profile not in PROFILES:
            raise UsageError(f"unknown synthetic profile: got '{profile}', expected one of {', '.join(PROFILES)}")
        profile = PROFILES[profile]
    if difficulty is None:
        return profile
    if difficulty not in DIFFICULTIES:
        raise UsageError(f"unknown difficulty: got '{difficulty}', expected one of {', '.join(DIFFICULTIES)}")
    return replace(profile, difficulty=DIFFICULTIES[difficulty])
