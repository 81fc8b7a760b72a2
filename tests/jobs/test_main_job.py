"""The main job runs with one command, and the reward rises."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import Finished, metrics
from torchrl_ckpt.checkpoint.layout import Layout


def test_the_last_lines_say_by_how_much_the_held_out_reward_rose(
    main_job: tuple[Path, Finished],
) -> None:
    before, after = main_job[1].out.splitlines()[-2:]
    start = float(re.fullmatch(r"held-out reward before \(step 0\): ([\d.]+)", before)[1])  # type: ignore[index]
    end = float(re.match(r"held-out reward after \(step 20\): ([\d.]+) ", after)[1])  # type: ignore[index]
    assert end - start >= 0.03


def test_there_are_twenty_steps_of_trainer_and_orchestrator(
    main_job: tuple[Path, Finished],
) -> None:
    rows = metrics(main_job[0])
    for component in ("trainer", "orchestrator"):
        assert [step for name, step in rows if name == component] == list(range(1, 21))


def test_the_rollouts_of_step_n_are_by_the_policy_of_two_steps_before(
    main_job: tuple[Path, Finished],
) -> None:
    rows = metrics(main_job[0])
    for step in range(1, 21):
        assert rows["orchestrator", step]["policy_version"] == max(0, step - 2)


def test_engine_and_trainer_agree_on_what_the_policy_says(main_job: tuple[Path, Finished]) -> None:
    # Step 1 is on-policy: the weights that are trained are those that generated.
    assert metrics(main_job[0])["trainer", 1]["logprob_difference"] < 1e-5


def test_on_policy_rollouts_have_the_trainer_s_logprobs_at_every_step(rl_run: Callable) -> None:
    rows = metrics(rl_run(0)[1])
    for step in range(1, 21):
        assert rows["trainer", step]["logprob_difference"] < 1e-5
        assert rows["orchestrator", step]["policy_version"] == step - 1
        assert 0 <= rows["orchestrator", step]["canary/mean_difference"] < 1e-5
        assert rows["orchestrator", step]["canary/max_difference"] < 1e-4


def test_keep_leaves_exactly_the_newest_three(main_job: tuple[Path, Finished]) -> None:
    layout = Layout(main_job[0] / "checkpoints")
    assert layout.steps() == [16, 18, 20]
    assert layout.leftovers() == []


def test_the_final_model_is_an_ordinary_hugging_face_directory(
    main_job: tuple[Path, Finished],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = main_job[0] / "weights/step_20"
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer("cat>", return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(answer[0][4:], skip_special_tokens=True) == "tac"
