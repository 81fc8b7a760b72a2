"""A working directory for the recipes of one test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe_files import Recipes


@pytest.fixture(name="recipes")
def make_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipes:
    monkeypatch.chdir(tmp_path)
    return Recipes(tmp_path)
