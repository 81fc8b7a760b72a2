"""Tiny jobs, started by the commands that users give."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MAX_STEPS = 6

Victim = Literal["launcher", "torchrun", "trainer", "worker", "orchestrator", "inference"]
"""A process of a job; `worker` is a writer or committer of the trainer."""

_RECIPES = Path(__file__).parents[3] / "recipes"


@dataclass(frozen=True)
class Job:
    """`rl` at an `async_level`, or `sft` if that is None."""

    async_level: int | None = None
    ranks: int = 1
    save_async: bool = False

    def __str__(self) -> str:
        kind = "sft" if self.async_level is None else f"rl at async_level {self.async_level}"
        saving = ", saved in the background" if self.save_async else ""
        return f"{kind}, {self.ranks} rank{'s' if self.ranks > 1 else ''}{saving}"

    @property
    def victims(self) -> tuple[Victim, ...]:
        """The processes that faults can hit."""
        victims: list[Victim] = ["launcher", "trainer"]
        victims += ["torchrun"] if self.ranks > 1 else []
        victims += ["worker"] if self.save_async else []
        victims += ["orchestrator", "inference"] if self.async_level is not None else []
        return tuple(victims)

    def argv(self, output_dir: Path, max_steps: int = MAX_STEPS) -> list[str]:
        if self.async_level is None:
            words = f"sft @ {_RECIPES}/sft_reverse.toml --data.batch-size 8 --threads 1"
            words += f" --ranks {self.ranks}"
        else:
            words = f"rl @ {_RECIPES}/rl_reverse.toml --no-trainer.warm-start --trainer.threads 1"
            words += f" --trainer.ranks {self.ranks} --inference.threads 1"
            words += " --orchestrator.prompts-per-step 6 --orchestrator.samples-per-prompt 4"
            words += f" --no-orchestrator.evaluation --orchestrator.async-level {self.async_level}"
        words += f" --max-steps {max_steps} --ckpt.interval 2"
        words += " --ckpt.save-async" if self.save_async else ""
        command, *arguments = words.split()
        program = Path(sys.executable).with_name(command)
        return [str(program), *arguments, "--output-dir", str(output_dir)]
