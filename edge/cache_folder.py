"""Where a user's programs keep what they can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """rust-edge's folder in the user's cache, made or not.

    Source: XDG Base Directory Specification, which wants relative paths ignored.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not named.is_absolute():
        try:
            named = Path.home() / ".cache"
        except RuntimeError:  # a service without a home
            named = Path("/var/cache")
    return named / "rust-edge"
