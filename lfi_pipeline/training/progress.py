"""What a run tells on stderr, beside its progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from lfi_pipeline.training.active import ActiveRun
from lfi_pipeline.training.tasks import main_score


def introduction(run: ActiveRun) -> Iterator[str]:
    """What to know of a run before it starts."""
    if run.config.uses_queries:
        pairs = zip(run.learner.student.taps, run.learner.layers, strict=True)
        pairing = ", ".join(f"{tap.index} (depth {tap.depth:.2f}) <- teacher layer {layer}" for tap, layer in pairs)
        yield f"{run.out.name}: taps {pairing}"
    if run.step:
        yield f"{run.out.name}: goes on at step {run.step} of {run.total_steps}"


def epoch_line(epoch: int, epochs: int, runs: Sequence[ActiveRun], spent: Mapping[str, float]) -> str:
    """Scores, and where the time of an epoch went."""
    scored = [(run, main_score(run.task)) for run in runs]
    scores = [
        f"{run.out.name} {score} {run.scores[score]:.1%}"
        for run, score in scored
        if score is not None and run.scores.get(score) is not None
    ]
    total = sum(spent.values()) or 1.0
    shares = ", ".join(f"{phase} {seconds / total:.0%}" for phase, seconds in spent.items())
    return f"epoch {epoch}/{epochs}: {', '.join([*scores, f'{total:.1f} s'])} ({shares})"


def tell(*lines: str) -> None:
    """Write to stderr, beside the progress bar."""
    for line in lines:
        tqdm.write(line, file=sys.stderr)
