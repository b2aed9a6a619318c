"""Clients as a Flower ClientApp: local training and the defenses that clients have."""

import fedleak  # noqa: F401  # first: switches Flower's telemetry off
