"""The heads as vLLM draft models, and what runs them in vLLM's two model runners."""
