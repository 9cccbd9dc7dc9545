"""The demo: a small real model served plain and with a trained head, side by side."""

from .run import run_demo

__all__ = ["run_demo"]
