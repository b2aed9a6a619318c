"""Composition: builds the ServerApp and the ClientApp and runs them on an engine."""

from fedleak.federation.launch import run

__all__ = ["run"]
