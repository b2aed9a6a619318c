"""Keeping a Ray session to oneself."""

from __future__ import annotations

import os
import secrets


def seclude_ray() -> None:
    """Give Ray sessions that this process starts a token that nobody else has.

    Ray listens on all of the machine's interfaces and runs what it is sent. It reads
    the token when it is imported, so this comes first. A token that the user set stays.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
