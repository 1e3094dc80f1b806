"""Where the files shipped beside the code live: recipes and device targets."""

from __future__ import annotations

from pathlib import Path

from bevkd_deploy.contracts.errors import UsageError


def resource_dir(name: str) -> Path:
    """Folder of shipped files, in an installed wheel or in a checkout.

    Args:
        name: path as it stands in the repository: `recipes` or `export/targets`.

    Raises:
        UsageError: neither place has the folder, so the installation is broken.
    """
    package = Path(__file__).resolve().parent.parent
    # The wheel's copy comes first: beside an installed package, `recipes` could belong to anybody.
    candidates = (package / "_resources" / name, package.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UsageError(f"the folder '{name}' that ships with bevkd is missing; reinstall with: pip install bevkd-deploy")
