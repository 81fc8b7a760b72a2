"""Runs one component of a job by itself, for who starts them by hand or on several machines."""

from __future__ import annotations

