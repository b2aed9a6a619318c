"""What each client trained on, for scoring alone: ``fedleak audit ... --truth truth:truth``."""

from __future__ import annotations

import numpy as np
from cifar_app.task import DEFAULTS, load_images


def truth(round: int, client: str) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1], before normalisation, and labels of ``client-000``, ``client-001``..."""
    return load_images(int(client.removeprefix("client-")), int(DEFAULTS["samples-per-client"]))
