"""A student with the terms it learns from: everything that has weights in training, built new or loaded from a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from lfi_pipeline.core.errors import RunError, TooLargeError, UnknownNameError
from lfi_pipeline.core.runtime import resolve_device
from lfi_pipeline.objectives import StepContext, build_terms
from lfi_pipeline.objectives.interaction import task_loss
from lfi_pipeline.students import Student, Supervision, pair_layers
from lfi_pipeline.students.pretrained import bounded_build
from lfi_pipeline.students.query_head import CLASSES_AT_ONCE, class_embeddings
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.vocabulary import classes_of_words, named_classes
from lfi_pipeline.training.checkpoint import load_weights
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.data import MAPS, Batch
from lfi_pipeline.training.maps import MapResampler, class_supervision, peakedness
from lfi_pipeline.training.monitor import GradientBalance, gradient_squares
from lfi_pipeline.training.run_dir import BEST, CONFIG, LAST, read_json, recorded_config
from lfi_pipeline.training.validate import NONE

TASK, TOTAL, SQUARE = "task", "total", "square of "
_BACKBONE = "student.backbone."


def build_student(config: TrainConfig, store: TargetStore, task: str, backbone: nn.Module | None = None) -> Student:
    """Return the student that `config` asks for, initialised from its seed; `backbone` as of `Student`."""
    torch.manual_seed(config.data.seed)
    classifies, head, queries = task != NONE, config.head, config.resolved_queries if config.uses_queries else None
    if head == "queries" and not classifies:  # without labels, words alone can be asked for, where they are scored
        if "presence" in config.terms:
            queries = replace(config.resolved_queries, readout="text")
        else:
            head, queries = "linear", queries if "lfi" in config.terms else None
    return Student(
        config.student,
        classes=len(store.spec.dataset.classes) if classifies else 0,
        embedding_dim=store.spec.embedding_dim,
        queries=queries,
        presence="presence" in config.terms,
        head=head,
        class_embeddings=class_embeddings(store) if head == "queries" and classifies else None,
        backbone=backbone,
    )


class Learner(nn.Module):
    """Student and terms. One forward pass of it is what processes share and precision applies to.

    Args:
        config: the run.
        store: the cache.
        task: as `validate.resolve_task` says.
        backbone: a module of one's own instead of timm's, as of `Student`.

    Raises:
        UnknownNameError, ConfigError: a student that cannot be built, a term that the cache cannot serve.
    """

    def __init__(self, config: TrainConfig, store: TargetStore, task: str, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.task, self._weights_of = task, {term: config.weight(term) for term in config.terms}
        self._codec, self._uniform = store.spec.codec.name, config.data.maps == "uniform"
        self._multi_label_loss, self._peaked = config.multi_label_loss, config.word_weight == "peaked"
        relative = [term for term, weight in self._weights_of.items() if weight.relative]
        self.balance = GradientBalance(relative, TASK if task != NONE else config.terms[0])
        self.student = build_student(config, store, task, backbone)
        terms = build_terms(config, self.student, store, task)
        self.terms = nn.ModuleDict(terms)
        self.reads = frozenset[str]().union(*(term.reads for term in terms.values()))
        self._with_taps = any(term.reads_taps for term in terms.values())
        self.layers = pair_layers(self.student.taps, [layer.depth for layer in store.spec.layers])
        self._draws_words = "presence" in terms
        self.register_buffer("vocabulary", torch.from_numpy(store.vocabulary.embeddings).float(), persistent=False)
        classes = classes_of_words(store.vocabulary.words, store.spec.dataset.classes)
        self.register_buffer("class_of_word", classes, persistent=False)

    vocabulary: Tensor
    class_of_word: Tensor

    def weights(self, progress: float) -> dict[str, float]:
        """Return each term's weight at `progress` in [0, 1] of the run. Without a task, the reference term has 1."""
        weights = {term: weight.at(progress) for term, weight in self._weights_of.items()}
        for term in (term for term, weight in self._weights_of.items() if weight.relative):
            weights[term] = 1.0 if term == self.balance.reference else weights[term] * self.balance.ratio(term)
        return weights

    def loss(self, batch: Batch, *, step: int, progress: float = 0.0) -> dict[str, Tensor]:
        """Return the losses of a whole batch on one device, as `forward` does; for a training loop of one's own.

        Args:
            batch: on the learner's device.
            step: number of the step, from 0: weights relative to the task's gradient are measured every so often.
            progress: in [0, 1], how much of the run is done.
        """
        cut = MapResampler(batch, self._codec, uniform=self._uniform) if MAPS in self.reads else None
        supervision, present = self.supervise(cut)
        weights = supervision.weights if supervision is not None else None
        mass = torch.stack([weight.sum() for weight in weights]) if weights else None
        context = StepContext(batch=batch, share=1.0, mass=mass, present=present, cut=cut)
        measure = self.balance.due(step)
        losses: dict[str, Tensor] = self(context, supervision, self.weights(progress), measure=measure)
        squares = {name: float(losses.pop(name)) for name in list(losses) if name.startswith(SQUARE)}
        if measure:
            self.balance.update({name.removeprefix(SQUARE): square for name, square in squares.items()})
        return losses

    def supervise(self, cut: MapResampler | None) -> tuple[Supervision | None, Tensor | None]:
        """Return the words of each image with their target maps, and which of the words are present [B, M'] (`StepContext`).

        Of a query head, words teach the classes that they name, as rows of the pass that answers. With the presence term
        words run by themselves, and as many more are drawn from the vocabulary by torch's generator.
        """
        if cut is None or MAPS not in self.reads:
            return None, None
        targets, weights, scales = [], [], []
        for tap, layer in zip(self.student.taps, self.layers, strict=True):
            codes = None if self._peaked else cut.codes_on(tap.grid)
            on_grid = codes or cut.on(tap.grid)
            target, kept = on_grid.maps[:, layer], on_grid.kept[:, layer]
            targets.append(target)
            weights.append(kept * peakedness(target) if self._peaked else kept)
            scales.append(None if codes is None else codes.scale[:, layer])
        words, head = on_grid.words, self.student.query_head
        if head is not None and not self._draws_words and len(head.classes) <= CLASSES_AT_ONCE:
            of_words = Supervision(None, targets, weights, scales, cut.companding)
            return class_supervision(words, self.class_of_word, len(head.classes), of_words), None
        seen = torch.stack(weights).sum(0) > 0
        if head is not None:
            weights = [each * (named_classes(words, self.class_of_word) >= 0) for each in weights]
        if not self._draws_words:
            return Supervision(self.vocabulary[words.clamp_min(0)], targets, weights, scales, cut.companding), None
        drawn = torch.randint(len(self.vocabulary), words.shape, device=words.device)
        absent = (drawn[:, :, None] != words[:, None, :]).all(-1)
        present = torch.cat([torch.where(seen, 1.0, torch.nan), torch.where(absent, 0.0, torch.nan)], 1)
        words = torch.cat([words, drawn], 1)
        targets = [torch.cat([each, torch.zeros_like(each)], 1) for each in targets]
        weights = [torch.cat([each, torch.zeros_like(each)], 1) for each in weights]
        scales = [None if each is None else torch.cat([each, torch.zeros_like(each)], 1) for each in scales]
        return Supervision(self.vocabulary[words.clamp_min(0)], targets, weights, scales, cut.companding), present

    def forward(
        self,
        context: StepContext,
        supervision: Supervision | None,
        weights: Mapping[str, float],
        *,
        measure: bool = False,
    ) -> dict[str, Tensor]:
        """Return the losses of a piece of a batch: each term's by its name, `task` where there is one, and `total`.

        Scalars, already weighted by the piece's share of the batch; terms are not yet multiplied by `weights`.

        Args:
            context, supervision: what is learned from, as `supervise` and its caller made them.
            weights: of the terms; 1 where not given.
            measure: return the squared norm of each loss's gradient too, under its name after `SQUARE`.
        """
        batch = context.batch
        # A compiled backbone is one node of the graph: the gradients at its first tap are not those that are measured.
        with torch.compiler.set_stance("force_eager") if measure else nullcontext():
            features = self.student(batch.images[self.student.size], supervision, with_taps=measure or self._with_taps)
        losses: dict[str, Tensor] = {}
        if features.logits is not None:
            each = task_loss(self.task, features.logits, batch.labels, self._multi_label_loss)
            each = each if batch.label_weight is None else each * batch.label_weight
            losses[TASK] = each.mean() * context.share
        for name, term in self.terms.items():
            losses[name] = term(self.student, features, context)
        weighted = [losses[name] * weights.get(name, 1.0) for name in losses]
        squares = gradient_squares(losses, features.taps[0], features.pooled) if measure else {}
        total = {TOTAL: torch.stack(weighted).sum()}
        return losses | total | {SQUARE + name: square for name, square in squares.items()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return from a parameter's name to its layer, for timm's decay of the rate by layers.

        Layers of the backbone are as timm counts them; what is trained beside it comes after the last.
        """
        backbone = self.student.backbone
        layers = group_parameters(backbone, backbone.group_matcher(coarse), reverse=True)
        by_name = {_BACKBONE + name: layer for name, layer in layers.items()}
        after = max(by_name.values()) + 1
        return lambda name: by_name.get(name, after)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm leaves out of the weight decay, such as positions."""
        names: set[str] = getattr(self.student.backbone, "no_weight_decay", set)()
        return {_BACKBONE + name for name in names}

    def parameter_counts(self) -> dict[str, int]:
        """Return `Student.parameter_counts`, and the parameters of the terms, which are dropped after training."""
        return self.student.parameter_counts() | {"terms": sum(p.numel() for p in self.terms.parameters())}


WEIGHTS = {"last": LAST, "best": BEST}


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A trained student and what it was trained with."""

    path: Path
    record: dict[str, Any]
    config: TrainConfig
    student: Student
    store: TargetStore
    task: str


def load_run(run: Path, *, device: str = "auto", weights: str = "last", data_root: Path | None = None) -> LoadedRun:
    """Load a checkpoint of `run`: its last one, or its best one.

    Args:
        run, device: its directory; `auto` takes CUDA where there is one.
        weights: `last` or `best`.
        data_root: where the data set lies, if not where the run or its cache recorded.

    Raises:
        UnknownNameError: `weights` is neither `last` nor `best`.
        RunError: not a run, or one without a fitting checkpoint.
        TargetsError: the cache it was trained on is gone (its spec says how many classes there are).
    """
    if weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, tuple(WEIGHTS))
    record, config = read_json(run / CONFIG), recorded_config(run)
    store = TargetStore.open(config.data.targets, data_root=data_root or config.data.data_root)
    task = str(record.get("task"))
    file = run / WEIGHTS[weights]
    most = file.stat().st_size if file.is_file() else None  # no run has more parameters than bytes of them
    try:
        with bounded_build(f"The student of {run}", parameters=most):  # timm's own weights need not be at hand
            student = build_student(replace(config, student=replace(config.student, pretrained=False)), store, task)
    except TooLargeError as error:
        raise RunError(
            f"{file} must hold the weights of the student that {run / CONFIG} describes, and has {most} bytes: it is "
            f"damaged, or the settings are not those of the run ({error})"
        ) from error
    load_weights(file, student)
    return LoadedRun(run, record, config, student.to(resolve_device(device)).eval(), store, task)
