"""Runs one component of a job by itself, for who starts them by hand."""

from __future__ import annotations

from typing import TypeVar

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.resume import choose
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.inference.main import serve_recipe
from torchrl_ckpt.launcher import components
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.engine_env.engine_venv import enter, server_python
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.launcher.warm_start import warm_started
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.run import logs
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.resolved import write_resolved
from torchrl_ckpt.serving_api.listener import bind

C = TypeVar("C", RlTrainerConfig, OrchestratorConfig)


def run_inference(config: InferenceConfig) -> None:
    """Serve in this very process until SIGTERM or Ctrl-C, in the engine's environment."""
    enter(server_python(config))
    with bind(config.host, config.port) as listener:
        logs.configure()
        serve_recipe(config, listener, in_job=False)


def run_component(config: RlTrainerConfig | OrchestratorConfig) -> None:
    """Run the trainer or the orchestrator; whoever starts the other one gives it the same
    `output_dir` and `attempt`."""
    run = RunDirectory(config.output_dir, config.attempt)
    run.logs.mkdir(parents=True, exist_ok=True)
    run.stop.unlink(missing_ok=True)
    if isinstance(config, RlTrainerConfig):
        name, config = "trainer", warm_started(_with_checkpoint(config))
        component = components.trainer(run, config, run.logs / "trainer.json")
    else:
        name, config = "orchestrator", _with_checkpoint(config)
        component = components.orchestrator(run, {}, run.logs / "orchestrator.json")
    write_resolved(run.logs / f"{name}.json", name, config)
    title = f"{name.capitalize()} of {run.root}"
    tasks = {name: config.max_steps}
    with Display(title, run.metrics, run.progress, tasks=tasks) as display:
        supervise([component], finite=[name], display=display, on_stop_requested=run.stop.touch)


def _with_checkpoint(config: C) -> C:
    """`config` with the number of the verified checkpoint that it goes on from, if any."""
    if config.ckpt is None or config.ckpt.resume_step is None:
        return config
    if config.ckpt.resume_from is not None:
        raise RecipeError(
            "`ckpt.resume_from` is for `sft` and `rl`; here use `torchrl-ckpt ckpt fork` first"
        )
    layout = Layout(config.output_dir / config.ckpt.directory)
    step = choose(layout, config.ckpt.resume_step, quarantine=False).step
    ckpt = config.ckpt.model_copy(update={"resume_step": step})
    return config.model_copy(update={"ckpt": ckpt})
