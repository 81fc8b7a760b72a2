"""vLLM: the engine for models and loads that the embedded one is too slow for."""
