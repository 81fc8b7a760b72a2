"""Losses for supervised fine-tuning and reinforcement learning."""
