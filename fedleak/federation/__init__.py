"""Composition: builds the ServerApp and the ClientApp and runs them on an engine."""

from fedleak.federation.run import run

__all__ = ["run"]
