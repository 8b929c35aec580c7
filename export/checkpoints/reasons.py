"""What the errors of other libraries come down to in ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
