"""Hugging Face transformers: the model and the embedded engine."""
