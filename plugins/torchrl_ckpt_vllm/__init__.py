"""vLLM: the engine for models and request rates for which the embedded engine is too slow."""
