"""Runs one component of a job by itself, for who starts them by hand."""

from __future__ import annotations

from torchrl_ckpt.inference.process import serve_recipe
from torchrl_ckpt.inference.server import bind
from torchrl_ckpt.observe import logs
from torchrl_ckpt.recipe.schema import Inference, Orchestrator, RlTrainer
from torchrl_ckpt.run_directory import RunDirectory
from torchrl_ckpt.runner import components
from torchrl_ckpt.runner.display import Display
from torchrl_ckpt.runner.resolved import write_resolved
from torchrl_ckpt.runner.supervisor import supervise
from torchrl_ckpt.runner.warm_start import warm_started


def run_inference(config: Inference) -> None:
    """Serve in this very process until SIGTERM or Ctrl-C."""
    with bind(config.host, config.port) as listener:
        logs.configure()
        serve_recipe(config, listener, in_job=False)


def run_component(config: RlTrainer | Orchestrator) -> None:
    """Run the trainer or the orchestrator; whoever starts the other one gives it the same
    `output_dir` and `attempt`."""
    run = RunDirectory(config.output_dir, config.attempt)
    run.logs.mkdir(parents=True, exist_ok=True)
    if isinstance(config, RlTrainer):
        name, config = "trainer", warm_started(config)
        component = components.trainer(run, config, run.logs / "trainer.json")
    else:
        name = "orchestrator"
        component = components.orchestrator(run, {}, run.logs / "orchestrator.json")
    write_resolved(run.logs / f"{name}.json", name, config)
    title = f"{name.capitalize()} of {run.root}"
    tasks = {name: config.max_steps}
    with Display(title, run.metrics, run.progress, tasks=tasks) as display:
        supervise([component], finite=[name], display=display, on_stop_requested=run.stop.touch)
