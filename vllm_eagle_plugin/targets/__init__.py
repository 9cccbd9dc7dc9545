"""Reading any target: its shapes, its tables, prompts for it, and what it computes. Without vLLM."""
