"""A small synthetic street world, recorded in the nuScenes layout."""

from bevkd_deploy.data.synthetic.dataset import write_dataset
from bevkd_deploy.data.synthetic.profiles import PROFILES, Profile

__all__ = ["PROFILES", "Profile", "write_dataset"]
