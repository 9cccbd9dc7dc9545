"""Targets whose next token is a known function, and heads that draft it exactly by construction.

Any wrong shift, bias, mapping, norm or feedback then drops the acceptance from exactly 1.
"""

from .heads import known_answer_head, save_head
from .target import Target, build_target

__all__ = ["Target", "build_target", "known_answer_head", "save_head"]
