"""BEVFusion in plain torch: mmdet3d's module names and state dict keys, no compiled operators."""
