"""Runs one component of a job by itself, for a user who starts the components by hand."""

from __future__ import annotations

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher import components
from torchrl_ckpt.launcher.engine_env.engine_venv import restart_with, server_python
from torchrl_ckpt.launcher.job import finished_job
from torchrl_ckpt.launcher.start import join_attempt
from torchrl_ckpt.launcher.warm_start import warm_started
from torchrl_ckpt.run import logs
from torchrl_ckpt.run.resolved import write_resolved
from torchrl_ckpt.serving_api.listener import open_listener


def run_inference(config: InferenceConfig) -> None:
    """Serve in this process until SIGTERM or Ctrl-C.

    The command is restarted first if the engine needs another Python environment.
    """
    restart_with(server_python(config))
    with open_listener(config.host, config.port) as listener:
        # Imported here: it imports torch and FastAPI, which no other launcher needs.
        from torchrl_ckpt.inference.main import serve_recipe

        logs.configure()
        serve_recipe(config, listener, in_job=False)


def run_component(config: RlTrainerConfig | OrchestratorConfig) -> None:
    """Run the trainer or the orchestrator alone.

    The user starts the other one with the same `output_dir`.
    """
    name = "trainer" if isinstance(config, RlTrainerConfig) else "orchestrator"
    with join_attempt(name, config) as start:
        attempt, run = start.attempt, start.attempt.run
        resolved = run.logs / f"{name}.json"
        if isinstance(config, RlTrainerConfig):
            config = warm_started(config, attempt)
            component = components.trainer(run, config, resolved)
        else:
            component = components.orchestrator(run, {}, resolved)
        write_resolved(resolved, name, config, attempt)
        with finished_job(start, [component], title=f"{name.capitalize()} of {run.root}"):
            pass
