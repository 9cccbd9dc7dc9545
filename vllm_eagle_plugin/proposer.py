"""Where the proposers were; draft trees import them from here."""

from .serving.proposer_v1 import AttentionFreeProposer, HeadProposer, sampled_rows

__all__ = ["AttentionFreeProposer", "HeadProposer", "sampled_rows"]
