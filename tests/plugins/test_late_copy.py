"""No update changes a state that a background save has still to copy."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import RECIPES, ROOT, digests, succeed

STEPS = 4
DELAY_SECONDS = 0.7  # Many times what a step takes.


def install_late_copy(site: Path) -> dict[str, str]:
    """Offer `tests.support.late_copy` as a plugin; return the environment that sees it."""
    metadata = site / "late_copy-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: late_copy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[torchrl_ckpt.checkpoint_backends]\nlate_copy = tests.support.late_copy:LateCopyBackend\n"
    )
    return {"PYTHONPATH": f"{site}:{ROOT}"}


def test_an_update_waits_for_the_copy_of_the_state(tmp_path: Path) -> None:
    env = install_late_copy(tmp_path / "site")
    flags = f"--max-steps {STEPS} --ckpt.interval 1 --data.batch-size 4 --threads 1"
    sft = ("sft", "@", RECIPES / "sft_reverse.toml", *flags.split())
    late = ("--ckpt.backend", "late_copy", "--ckpt.backend.delay", DELAY_SECONDS)
    succeed(*sft, "--output-dir", "prompt", "--ckpt.save-async", cwd=tmp_path)
    succeed(*sft, "--output-dir", "late", *late, cwd=tmp_path, env=env)
    for step in range(1, STEPS + 1):
        checkpoint = f"checkpoints/step_{step}"
        assert digests(tmp_path / "late" / checkpoint) == digests(tmp_path / "prompt" / checkpoint)
