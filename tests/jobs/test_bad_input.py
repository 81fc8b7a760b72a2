"""Bad input gives one clear message, no traceback, and changes nothing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, Finished, run, succeed
from tests.support.site_packages import SitePackages

SFT = RECIPES / "sft_reverse.toml"
RL = RECIPES / "rl_reverse.toml"


def refused(finished: Finished, *words: str) -> None:
    assert finished.code not in (0, 1), finished
    assert finished.err.count("error: ") == 1, finished.err
    assert "Traceback" not in finished.err + finished.out
    for word in words:
        assert word in finished.err


def test_a_missing_recipe(tmp_path: Path) -> None:
    refused(run("torchrl-ckpt", "run", "no.toml", cwd=tmp_path), "there is no file `no.toml`")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_and_its_nearest_neighbour(tmp_path: Path) -> None:
    finished = run("sft", "@", SFT, "--ckpt.kep", 3, "--optim.rl", 1, cwd=tmp_path)
    refused(finished, "--ckpt.kep", "`--ckpt.keep`", "--optim.rl")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_the_other_kind(tmp_path: Path) -> None:
    refused(run("sft", "@", RECIPES / "rl_reverse.toml", cwd=tmp_path), "start it with `rl`")
    refused(run("rl", "@", SFT, cwd=tmp_path), "start it with `sft`")


def test_the_recipe_command_without_a_recipe_and_with_an_at_sign(tmp_path: Path) -> None:
    refused(run("torchrl-ckpt", "run", cwd=tmp_path), "needs a recipe file")
    shown = succeed("torchrl-ckpt", "run", "@", SFT, "--show-config", cwd=tmp_path)
    assert "max_steps = 40" in shown.out
    misspelled = run("torchrl-ckpt", "run", SFT, "--show-configg", cwd=tmp_path)
    refused(misspelled, "did you mean `--show-config`?")


def test_a_missing_data_file_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    model = ("--model.type", "transformers", "--model.name", "nobody/has-this")
    finished = run("sft", *model, "--data.files", '["train.jsonl"]', cwd=tmp_path, timeout=30)
    refused(finished, "there is no data file", "train.jsonl (`data.files`)")


def test_a_new_run_where_an_earlier_one_left_weights_says_so(workplace: Path) -> None:
    left = workplace / "earlier/weights/step_20"
    left.mkdir(parents=True)
    started = succeed(
        *("sft", "@", SFT, "--max-steps", 1, "--output-dir", "earlier"), cwd=workplace
    )
    assert "holds an earlier run without checkpoints: its weights of step 20" in started.out
    assert left.is_dir()


def test_an_unknown_plugin_and_what_there_is(tmp_path: Path) -> None:
    finished = run("sft", "@", SFT, "--loss", "cross_entrpy", cwd=tmp_path)
    refused(finished, "--loss cross_entrpy", "did you mean", "`cross_entropy`")
    assert list(tmp_path.iterdir()) == []


def test_a_resume_step_that_is_not_there(sft_run: Path, workplace: Path) -> None:
    before = sorted(sft_run.rglob("*"))
    finished = run("sft", "@", SFT, "--max-steps", 50, "--ckpt.resume-step", 7, cwd=workplace)
    refused(finished, "no checkpoint of step 7", "there is step 40")
    assert sorted(sft_run.rglob("*")) == before


def test_a_fresh_run_where_checkpoints_are(sft_run: Path, workplace: Path) -> None:
    before = (sft_run / "metrics.jsonl").read_bytes()
    finished = run("sft", "@", SFT, "--ckpt", cwd=workplace)
    refused(finished, "already holds checkpoints", "--ckpt.resume-step 40")
    assert (sft_run / "metrics.jsonl").read_bytes() == before


def test_a_resume_with_nothing_left_to_train(sft_run: Path, workplace: Path) -> None:
    finished = run("sft", "@", SFT, "--ckpt.resume-step", "latest", cwd=workplace)
    refused(finished, "step 40", "--max-steps")


def test_a_seed_that_would_skip_samples_is_refused_by_name(sft_run: Path, workplace: Path) -> None:
    resume = ("--max-steps", 50, "--ckpt.resume-step", "latest")
    finished = run("sft", "@", SFT, *resume, "--seed", 1, cwd=workplace)
    refused(finished, "`seed` was 0 and is 1 now")


def test_an_output_directory_that_cannot_be_written_to(sft_run: Path, workplace: Path) -> None:
    (workplace / "a_file").touch()
    below_a_file = ("--output-dir", "a_file/run")
    for job in (("sft", "@", SFT), ("sft", "@", SFT, "--dry-run"), ("rl", "@", RL)):
        finished = run(*job, *below_a_file, cwd=workplace)
        refused(finished, "cannot write to the run's directory", "a_file/run", "--output-dir")


@pytest.mark.skipif(
    shutil.which("mount") is None or os.getuid() != 0, reason="needs mount and root"
)
def test_an_output_directory_on_a_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=False)
    if mount.returncode != 0:
        pytest.skip("cannot mount a file system here")
    try:
        finished = run("sft", "@", SFT, "--output-dir", disk / "run", cwd=tmp_path)
    finally:
        subprocess.run(["umount", disk], check=True)
    refused(finished, "cannot write to the run's directory", "Read-only file system")


def test_a_port_in_use(sft_run: Path, workplace: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--inference.port", port, "--output-dir", tmp_path / "run")
        refused(run("rl", "@", RL, *flags, cwd=workplace), f"127.0.0.1:{port} is taken")
        alone = ("inference", "@", RECIPES / "reverse/infer.toml", "--port", port)
        refused(run(*alone, cwd=workplace), f"127.0.0.1:{port} is taken")


def test_a_model_directory_without_a_tokenizer(sft_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(sft_run / "weights/step_40", model)
    for file in (*model.glob("tokenizer*"), *model.glob("*.jinja")):
        file.unlink()
    recipe = tmp_path / "recipe.toml"
    table = f"""
    max_steps = 2
    [model]
    type = "transformers"
    name = "model"
    [data]
    environment = "@ {RECIPES}/reverse/environment.toml"
    """
    recipe.write_text(table)
    finished = run("torchrl-ckpt", "run", recipe, cwd=tmp_path)
    refused(finished, f"{model}: no usable tokenizer in this directory")


@pytest.mark.parametrize("text", ["[data", 'max_steps = "many"', "max_steps = 1\nmax_steps = 2"])
def test_a_recipe_that_is_not_right_names_the_line(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text(text)
    refused(run("sft", "@", "bad.toml", cwd=tmp_path), "bad.toml:")


DATA = """
max_steps = 2
model = "@ {recipes}/reverse/model.toml"
[data]
files = ["data.jsonl.gz"]
batch_size = 4
"""


def test_a_sample_too_long_is_found_before_the_first_step_and_can_be_dropped(
    tmp_path: Path,
) -> None:
    good, long = {"prompt": "ab>", "completion": "ba"}, {"prompt": "a" * 130, "completion": "b"}
    lines = "\n".join(map(json.dumps, [*[good] * 9, long, good]))
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "sft.toml").write_text(DATA.format(recipes=RECIPES))

    shown = run("sft", "@", "sft.toml", "--dry-run", cwd=tmp_path)
    found = "1 of 11 samples are longer than 128 tokens (`packing.length`), first "
    refused(shown, found, "data.jsonl.gz:10 with 132 tokens", "`data.too_long`")

    dropped = succeed("sft", "@", "sft.toml", "--data.too-long", "drop", cwd=tmp_path)
    assert found in dropped.out
    assert "they are dropped" in dropped.out


def test_a_dry_run_says_what_it_would_resume_from_and_changes_nothing_else(
    sft_run: Path, workplace: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in sft_run.rglob("*") if path.is_file()}
    resume = ("sft", "@", SFT, "--max-steps", 50, "--ckpt.resume-step", "latest", "--dry-run")
    shown = succeed(*resume, cwd=workplace)
    assert "it would resume from step 40, whose files are verified" in shown.out
    assert "1,800 samples of 6 to 18 tokens; the limit is 128 tokens" in shown.out
    after = {path: path.stat().st_mtime_ns for path in sft_run.rglob("*") if path.is_file()}
    after.pop(sft_run / "dry_run.json")
    assert {path.name for path in after if after[path] != before[path]} <= {".lock"}

    damaged = tmp_path / "run"
    shutil.copytree(sft_run / "checkpoints", damaged / "checkpoints")
    next(damaged.rglob("*.distcp")).write_bytes(b"")
    refused(run(*resume, "--output-dir", damaged, cwd=workplace), "step_40", "no checkpoint in")


def test_prompts_that_leave_no_room_are_found_by_a_dry_run(sft_run: Path, workplace: Path) -> None:
    small = ("--trainer.packing.length", 20, "--output-dir", "small")
    refused(
        run("rl", "@", RL, *small, "--dry-run", cwd=workplace),
        "environment `reverse_text`, problem ",
        "its prompt of 9 tokens and `sampling.max_tokens` = 12 make 21 tokens",
        "the limit is 20 tokens (`trainer.packing.length`)",
    )


ACME = """
from torchrl_ckpt_reverse.environment import ReverseText

class Acme(ReverseText):
    def score(self, problem, completion):
        return len(completion) / 0
"""


@pytest.mark.slow
def test_a_scorer_that_raises_is_named_and_its_traceback_is_in_the_log(
    sft_run: Path, workplace: Path, tmp_path: Path
) -> None:
    entry_points = "[torchrl_ckpt.environments]\nacme = acme_words:Acme\n"
    SitePackages(tmp_path).install("acme_words", entry_points, modules={"acme_words": ACME})
    recipe = tmp_path / "rl.toml"
    recipe.write_text(
        f'"@" = "{RL}"\n[orchestrator.environment]\n'
        f'type = "acme"\ntext = "{RECIPES}/reverse/words.txt"\n'
    )
    directory = ("--output-dir", tmp_path / "run")
    env = {"PYTHONPATH": str(tmp_path)}
    finished = run("rl", "@", recipe, *directory, cwd=workplace, env=env)
    assert finished.code == 2
    refused(
        finished,
        "environment `acme` raised ZeroDivisionError in score of problem ",
        "the completion: ",
    )
    log = (tmp_path / "run/logs/attempt_1/orchestrator.log").read_text()
    assert "return len(completion) / 0" in log
