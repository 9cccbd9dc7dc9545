"""Our heads as vLLM draft models. Imported by vLLM, lazily, when a head asks for one."""
