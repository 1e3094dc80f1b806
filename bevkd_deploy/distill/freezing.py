"""Holding parts of a network still."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from bevkd_deploy.contracts.errors import UsageError


class Frozen:
    """The modules of a network that some globs name; they are neither trained nor do their batch norms update.

    A glob is matched against dotted module names (`img_backbone`, `pts_*`, `bbox_head.heatmap`); all below a match is
    frozen with it.
    """

    def __init__(self, network: nn.Module, globs: tuple[str, ...]) -> None:
        """Find the modules.

        Raises:
            UsageError: a glob names no module.
        """
        named = {name: module for name, module in network.named_modules() if name}
        self.modules: list[nn.Module] = []
        for glob in globs:
            found = [module for name, module in named.items() if fnmatchcase(name, glob)]
            if not found:
                close = difflib.get_close_matches(glob, named, n=3) or [name for name, _ in network.named_children()]
                raise UsageError(f"freeze: the network has no module '{glob}'. Did you mean one of {close}?")
            self.modules += found
        network.requires_grad_(True)
        for module in self.modules:
            module.requires_grad_(False)

    def hold(self) -> None:
        """Put the modules into evaluation mode; to be called after every `train()`."""
        for module in self.modules:
            module.eval()
