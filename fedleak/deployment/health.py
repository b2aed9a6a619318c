"""Whether the Flower process on a port of this machine answers: ``python -m ... PORT``.

Containers run it every few seconds, so it imports next to nothing.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request
from pathlib import Path

_SECONDS = 3.0


def healthy(port: int, certificate: Path | None = None) -> bool:
    """Ask a SuperLink or SuperNode how it is.

    Args:
        port: Its port on loopback.
        certificate: Of the authority that signed its certificate, where it speaks TLS.
    """
    context = ssl.create_default_context(cafile=certificate) if certificate else None
    url = f"http{'s' if certificate else ''}://localhost:{port}/health"
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS, context=context) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    port, folder = int(sys.argv[1]), os.environ.get("FEDLEAK_CERTS")
    # A SuperNode's own port is for its ClientApp, on loopback and without TLS.
    tls = folder and port == 8000
    sys.exit(not healthy(port, Path(folder) / "ca.pem" if folder and tls else None))
