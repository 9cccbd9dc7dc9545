"""Training: from a target alone to a head that `convert` reads. Needs no vLLM."""
