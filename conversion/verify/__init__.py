"""Proof that a written head computes what the trained one does."""

from __future__ import annotations

from .check import Verification, verify, verify_source

__all__ = ["Verification", "verify", "verify_source"]
