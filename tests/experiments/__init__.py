"""The judgement of our own measuring."""
