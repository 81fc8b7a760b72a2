"""All `ckpt` commands take their arguments alike, and their help and the docs show what works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from tests.support.ckpt_command import CkptCommand
from tests.support.saved_run import save_run
from torchrl_ckpt.cli.ckpt.main import COMMANDS
from torchrl_ckpt.plugin_api.durable_files import read_json, write_json
from torchrl_ckpt.run.metrics import MetricsLog

ROOT = Path(__file__).parents[2]
NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]
WITH_STEP = ["inspect", "verify", "diff", "export", "fork"]


class Help:
    """The help of a command, in parts."""

    def __init__(self, ckpt: CkptCommand, command: str) -> None:
        shown = ckpt(command, "--help")
        assert shown.exit_code == 0
        usage, _, rest = shown.out.partition("\n\n")
        self.text = shown.out
        self.usage = " ".join(usage.split())
        self.positionals = re.findall(r" ([A-Z_]+)(?![^\[]*\])", self.usage)
        self.options = dict(re.findall(r"\[(--[a-z-]+) ?([^\]]*)\]", self.usage))
        self.meanings = dict(_meanings(rest.partition("examples:")[0]))
        self.examples = _commands(rest.partition("examples:")[2])


def _meanings(text: str) -> Iterator[tuple[str, str]]:
    """Each argument and what the help says about it."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if match := re.match(r"  (\S.*?)(?:  +(.*))?$", line):
            more = takewhile(lambda line: line.startswith(" " * 8), lines[number + 1 :])
            yield match[1], " ".join(" ".join([match[2] or "", *more]).split())


def _commands(text: str) -> list[list[str]]:
    """The arguments of each `torchrl-ckpt ckpt` at the start of a line in `text`, up to a pipe."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ | *)torchrl-ckpt ckpt (.*)", joined, re.MULTILINE)
    calls = [shlex.split(line, comments=True) for line in lines]
    return [list(takewhile(lambda word: word != "|", call)) for call in calls]


@pytest.fixture(name="helps")
def make_helps(ckpt: CkptCommand) -> dict[str, Help]:
    return {name: Help(ckpt, name) for name in NAMES}


def test_a_command_reads_run_or_two_of_them_and_writes_target(helps: dict[str, Help]) -> None:
    schemes = {name: command.positionals for name, command in helps.items()}
    assert schemes == {
        **{name: ["RUN"] for name in NAMES},
        "diff": ["RUN_A", "RUN_B"],
        "export": ["RUN", "TARGET"],
        "fork": ["RUN", "TARGET"],
    }


def test_step_selects_a_checkpoint_of_run_in_the_same_words_everywhere(
    helps: dict[str, Help],
) -> None:
    with_step = {name: command for name, command in helps.items() if "--step" in command.options}
    assert list(with_step) == WITH_STEP
    for command in with_step.values():
        assert command.options["--step"] == "N"
        assert re.match(r"the checkpoint of step N \(default: ", command.meanings["--step N"])
        runs = {command.meanings[name] for name in command.positionals if name != "TARGET"}
        assert runs == {
            "a run's directory, its checkpoint directory, or one checkpoint in it (step_N)"
        }
    for name in set(NAMES) - with_step.keys():
        assert helps[name].meanings["RUN"] == "a run's directory, or its checkpoint directory"


def test_an_option_of_several_commands_has_one_form_and_one_meaning(
    helps: dict[str, Help],
) -> None:
    forms: dict[str, set[tuple[str, str]]] = {}
    for command in helps.values():
        assert command.options["--json"] == ""
        for option, metavar in command.options.items():
            meaning = command.meanings[f"{option} {metavar}".rstrip()]
            assert meaning[0].islower()
            assert not meaning.endswith(".")
            forms.setdefault(option, set()).add((metavar, meaning.partition(" (default")[0]))
    assert {option: len(found) for option, found in forms.items() if len(found) > 1} == {}


def _arguments(command: str, run: Path, target: Path) -> list[object]:
    """What the command needs, where it reads `run`."""
    match command:
        case "diff":
            return [command, run, run]
        case "prune":
            return [command, run, "--keep", 1, "--dry-run"]
        case "export" | "fork":
            return [command, run, target]
    return [command, run]


@pytest.mark.parametrize("command", NAMES)
def test_json_is_printed_on_request(
    ckpt: CkptCommand, run: Path, tmp_path: Path, command: str
) -> None:
    done = ckpt(*_arguments(command, run, tmp_path / "target"), "--json")
    assert done.exit_code == 0
    assert json.loads(done.out)


@pytest.mark.parametrize("command", WITH_STEP)
def test_one_checkpoint_is_selected_by_its_step_or_by_its_directory(
    ckpt: CkptCommand, run: Path, tmp_path: Path, command: str
) -> None:
    by_step = ckpt(*_arguments(command, run, tmp_path / "by_step"), "--step", 4, "--json")
    directory = run / "checkpoints/step_4"
    by_directory = ckpt(*_arguments(command, directory, tmp_path / "by_directory"), "--json")
    assert by_step.exit_code == by_directory.exit_code == 0
    assert by_step.out.replace("by_step", "by_directory") == by_directory.out
    assert "step_4" in by_step.out


@pytest.mark.parametrize("command", WITH_STEP)
def test_a_step_of_one_checkpoint_is_refused(
    ckpt: CkptCommand, run: Path, tmp_path: Path, command: str
) -> None:
    arguments = _arguments(command, run / "checkpoints/step_4", tmp_path / "target")
    done = ckpt(*arguments, "--step", 6)
    assert done.exit_code == 2
    assert "step_4 is one checkpoint, so `--step 6`" in done.err
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("command", sorted(set(NAMES) - set(WITH_STEP)))
def test_one_checkpoint_is_refused_by_a_command_that_looks_at_all(
    ckpt: CkptCommand, run: Path, tmp_path: Path, command: str
) -> None:
    done = ckpt(*_arguments(command, run / "checkpoints/step_4", tmp_path))
    assert done.exit_code == 2
    assert "step_4 is one checkpoint: give the run's directory" in done.err


@pytest.mark.parametrize("step", ["0", "-1", "newest"])
def test_a_step_that_is_no_number_from_1_is_refused(
    ckpt: CkptCommand, run: Path, step: str
) -> None:
    done = ckpt("inspect", run, "--step", step)
    assert done.exit_code == 2
    assert "argument --step" in done.err


def test_the_exit_codes_are_listed(ckpt: CkptCommand) -> None:
    listed = ckpt("--help").out.partition("exit codes:")[2]
    assert [line.split()[0] for line in listed.strip().splitlines()] == [*"01234", "130"]


@pytest.fixture(name="example_outputs", scope="session")
def make_example_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory `outputs` of the examples in `--help`: runs with the steps 10 and 20."""
    outputs = tmp_path_factory.mktemp("examples") / "outputs"
    outputs.mkdir()
    run = outputs / "rl_reverse"
    save_run(run, losses={10: 0.5, 20: 0.4})
    for step in (10, 20):
        MetricsLog(run / "metrics.jsonl").write("evaluation", step, {"reward/mean": 0.5})
    return outputs


@pytest.mark.parametrize("command", NAMES)
def test_the_examples_of_the_help_work(
    ckpt: CkptCommand,
    helps: dict[str, Help],
    example_outputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    run = shutil.copytree(example_outputs, tmp_path / "outputs") / "rl_reverse"
    for copy in ("a", "b"):
        shutil.copytree(run, run.with_name(copy))
    resolved = read_json(run / "resolved.json")
    resolved["attempt"]["ckpt"]["keep"] = 3
    write_json(run / "resolved.json", resolved)
    monkeypatch.chdir(tmp_path)
    assert helps[command].examples
    for arguments in helps[command].examples:
        assert arguments[0] == command
        done = ckpt(*arguments)
        assert done.exit_code == 0 or (command, done.exit_code) == ("diff", 1), done.err


@pytest.mark.parametrize("document", ["docs/checkpoint_command.md", "README.md"])
def test_the_commands_of_the_docs_have_valid_arguments(
    ckpt: CkptCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text()
    inline = re.findall(r"`(torchrl-ckpt ckpt [^`]+)`", text)
    commands = _commands("\n".join([text, *(" ".join(code.split()) for code in inline)]))
    assert commands
    for arguments in commands:
        assert "usage:" not in ckpt(*arguments).err, arguments
