"""Why a head is accepted less than it should be: every assumption that fits its shapes, measured."""

from __future__ import annotations

from .diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
