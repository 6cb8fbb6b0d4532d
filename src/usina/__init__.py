"""Usina: an open control plane for AI factories."""

__version__ = "0.1.0"
