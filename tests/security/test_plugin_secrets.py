"""Secrets in options of plugins are named by environment variable, never written or shown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr

from tests.support.commands import RECIPES, Finished, run
from tests.support.recipe_files import Recipes
from tests.support.site_packages import SitePackages
from tests.support.toy_schemas import Values
from torchrl_ckpt.config.settings import to_json
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.show_config import show_config
from torchrl_ckpt.recipe.validate import validate

SECRET = "hf_s3cretValueOfTheTest"
VARIABLE = "TORCHRL_CKPT_VAULT_TOKEN"

_VAULT = f"""
import logging
from pydantic import BaseModel, SecretStr
from torchrl_ckpt.plugin_api.environments import Problem, Score

class Config(BaseModel):
    token: SecretStr
    fail: bool = False

class Vault:
    plugin_api = 1
    Config = Config

    def __init__(self, config):
        token = config.token.get_secret_value()
        assert token == {SECRET!r}, "another token"
        logging.warning("opened with %s and %s", token, config)
        if config.fail:
            raise ValueError(f"the vault refuses {{token}}")

    def size(self, split):
        return 100

    def problem(self, split, index):
        return Problem(str(index), "ab>", "ba")

    def score(self, problem, completion):
        return Score(1.0)
"""


@pytest.fixture(name="vault", scope="module")
def install_vault(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The process environment in which the environment plugin `vault` is installed, and its secret
    set."""
    site = SitePackages(tmp_path_factory.mktemp("site"))
    entry = "[torchrl_ckpt.environments]\nvault = vault:Vault\n"
    site.install("vault", entry, modules={"vault": _VAULT})
    return {"PYTHONPATH": str(site.directory), VARIABLE: SECRET}


def _sft(vault: dict[str, str], cwd: Path, *flags: object) -> Finished:
    recipe = ("sft", "@", RECIPES / "sft_reverse.toml", "--max-steps", 1, "--data.batch-size", 8)
    return run(*recipe, "--data.environment", "vault", *flags, cwd=cwd, env=vault)


def test_no_file_of_a_run_and_nothing_on_the_terminal_holds_a_secret(
    vault: dict[str, str], tmp_path: Path
) -> None:
    finished = _sft(vault, tmp_path, "--data.environment.token", f"env:{VARIABLE}", "--ckpt")

    assert finished.code == 0, finished.err
    assert SECRET not in finished.out + finished.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    [run_directory] = (tmp_path / "outputs").iterdir()
    for name in ("resolved.json", "checkpoints/step_1/manifest.json"):
        assert f'"token": "env:{VARIABLE}"' in (run_directory / name).read_text()
    assert "opened with *** and" in (run_directory / "logs/attempt_1/trainer.log").read_text()


def test_the_logs_are_for_their_owner_only(vault: dict[str, str], tmp_path: Path) -> None:
    reference = ("--data.environment.token", f"env:{VARIABLE}")
    finished = _sft(vault, tmp_path, *reference, "--data.environment.fail")

    assert finished.code != 0
    assert "the vault refuses ***" in finished.err
    [run_directory] = (tmp_path / "outputs").iterdir()
    assert SECRET not in (run_directory / "logs/attempt_1/trainer.log").read_text()
    assert (run_directory / "logs/attempt_1").stat().st_mode & 0o777 == 0o700


def test_a_variable_that_is_not_set_is_named(vault: dict[str, str], tmp_path: Path) -> None:
    finished = _sft(vault, tmp_path, "--data.environment.token", "env:TORCHRL_CKPT_NOWHERE")

    assert finished.code == 2
    assert (
        "the environment variable TORCHRL_CKPT_NOWHERE, which is to hold a secret, is not set"
        in finished.err
    )


class _Inner(BaseModel):
    key: SecretStr | None = None


class _Model(BaseModel):
    token: SecretStr = SecretStr("built in")
    raw: SecretBytes | None = None
    several: list[SecretStr] = []
    named: dict[str, SecretStr] = {}
    inner: _Inner = _Inner()
    inners: list[_Inner] = []
    either: _Inner | int = 1
    size: int = 1


@dataclass
class _Dataclass:
    token: SecretStr
    size: int = 1


@pytest.fixture(name="recipes")
def make_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipes:
    monkeypatch.chdir(tmp_path)
    return Recipes(tmp_path)


def _resolve(recipes: Recipes, argv: str | list[str], config: type) -> Values:
    return validate(recipes.compose(Values, argv), Values, lambda _kind, _name: config)


PLACES = [
    "token = {}",
    "raw = {}",
    "several = [{}]",
    "named = {{a = {}}}",
    "inner = {{key = {}}}",
    "inners = [{{key = {}}}]",
    "either = {{key = {}}}",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_recipe_is_refused_and_not_shown(recipes: Recipes, place: str) -> None:
    table = f"{{type = 'x', size = 'wrong', {place.format(repr(SECRET))}}}"
    recipes.write(top=f"model = {table}")
    for argv in (["@", "top.toml"], ["--model", table]):
        with pytest.raises(RecipeError) as refused:
            _resolve(recipes, argv, _Model)
        assert SECRET not in str(refused.value)
        assert "takes a secret, which is not written here" in str(refused.value)
        assert "`model.size` is" in str(refused.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_reference_stays_a_reference(recipes: Recipes, place: str) -> None:
    recipes.write(top=f"model = {{type = 'x', {place.format(repr(f'env:{VARIABLE}'))}}}")
    composition = recipes.compose(Values, "@ top.toml")
    values = validate(composition, Values, lambda _kind, _name: _Model)

    assert json.dumps(to_json(values)).count(f"env:{VARIABLE}") == 1
    assert f"env:{VARIABLE}" in "\n".join(show_config(composition, values))
    assert "built in" not in json.dumps(to_json(values))


@pytest.mark.parametrize("value", [7, True, "", "env:", "env:A-B", f"{VARIABLE}", ["a"]])
def test_nothing_but_a_reference_is_a_secret(recipes: Recipes, value: Any) -> None:
    recipes.write(top=f"model = {{type = 'x', token = {json.dumps(value)}}}")
    with pytest.raises(RecipeError, match=r"top.toml:1: `model.token` takes a secret"):
        _resolve(recipes, "@ top.toml", _Dataclass)


def test_a_file_names_variables_with_the_prefix_only_and_a_flag_any(recipes: Recipes) -> None:
    recipes.write(top="model = {type = 'x', token = 'env:AWS_SECRET_ACCESS_KEY'}")
    with pytest.raises(
        RecipeError, match=r"top.toml:1: `model.token` is AWS_SECRET_ACCESS_KEY, but"
    ):
        _resolve(recipes, "@ top.toml", _Dataclass)
    values = _resolve(recipes, "@ top.toml --model.token env:AWS_SECRET_ACCESS_KEY", _Dataclass)
    assert values.model is not None
    assert values.model.options["token"] == "env:AWS_SECRET_ACCESS_KEY"
