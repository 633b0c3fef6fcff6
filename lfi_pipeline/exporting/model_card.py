"""The README (model card) of an export, written from the records of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import LFIError
from lfi_pipeline.data.manifest import load_manifest
from lfi_pipeline.evaluation.protocols import is_of_validation, read_results
from lfi_pipeline.exporting.check import APART, HEAD, INSIDE, NONE, QUERIES, Check, PlainModel
from lfi_pipeline.exporting.whole import HeadCost, WholeCheck
from lfi_pipeline.targets import DatasetSpec, TargetSpec, TargetStore
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.learner import LoadedRun
from lfi_pipeline.training.run_dir import SUMMARY, config_fields, read_json

_SCORE_NAMES = ("map_", "top")
_TOLD = ("objective", "maps", "queries", "state", "task", "hold_out", "epochs", "batch_size", "lr", "seed")
_OF_MAPS = ("maps", "queries", "state")


def card_facts(
    loaded: LoadedRun,
    plain: PlainModel,
    check: Check,
    *,
    folder: str,
    weights: str,
    onnx: bool,
    onnx_differs: float | None,
    whole: WholeCheck | None = None,
    cost: HeadCost | None = None,
) -> CardFacts:
    """Return the facts of a run and its export.

    Args:
        loaded: the run.
        plain: its exported model.
        check: how far the two differ.
        folder: name of the exported directory.
        weights: which checkpoint it is.
        onnx: whether ONNX was written.
        onnx_differs: its largest difference; None where it could not be run.
        whole: how far the whole model differs from the student; None where it was not written.
        cost: of its query head; None where it has none.
    """
    spec, student = loaded.store.spec, loaded.config.student
    scored, scores = _scores(loaded.path, weights)
    terms = loaded.config.terms
    return CardFacts(
        title=str(loaded.record.get("name") or loaded.path.resolve().name),
        folder=folder,
        taught=_taught(terms, str(loaded.record.get("maps", "teacher"))),
        head=plain.head,
        parameters=sum(p.numel() for p in plain.model.parameters()),
        model={
            "architecture": student.name,
            "arguments": dict(student.kwargs) or "none",
            "input": f"{loaded.student.size[0]} x {loaded.student.size[1]} pixels",
            "start": "timm's weights of this name" if student.pretrained else "random weights",
            "outputs": f"{plain.model.num_classes} classes" if plain.model.num_classes else "pooled features",
            **({"the query head of the whole model adds": cost.text} if cost is not None else {}),
        },
        data={
            "data set": f"{spec.dataset.name}, split {spec.dataset.split}, {spec.dataset.samples:,} samples",
            "license of the data": _license(spec.dataset, loaded.store),
            **(_teacher(spec) if terms else {"teacher": "none took part"}),
            "fingerprint of the targets": spec.fingerprint,
        },
        training={**_training(loaded.record, terms), "weights of the terms": _term_weights(loaded.config)},
        command=str(loaded.record.get("command", "")),
        weights=weights,
        scored=scored,
        scores=scores,
        checks=_checks(check, onnx, onnx_differs) | (_whole_checks(whole) if whole is not None else {}),
        onnx=onnx,
        whole=whole is not None,
    )


def _taught(terms: Sequence[str], maps: str) -> str:
    if not terms:
        return "trained on the task alone, without a teacher"
    if "lfi" not in terms:
        return f"taught by a vision-language teacher (terms: {', '.join(terms)})"
    if maps != "teacher":
        return f"trained on {maps} interaction maps, a control that does not show what the teacher looked at"
    return "taught with the interaction maps of a vision-language teacher"


def _teacher(spec: TargetSpec) -> dict[str, object]:
    return {
        "teacher": f"{spec.teacher.name}, weights {spec.teacher.tag}",
        "teacher's weights, sha256": spec.teacher.weights_sha256,
    }


def _training(record: Mapping[str, Any], terms: Sequence[str]) -> dict[str, object]:
    settings = record.get("settings", {})
    names = [name for name in _TOLD if "lfi" in terms or name not in _OF_MAPS]
    entries = {name: record[name] if name in record else settings.get(name) for name in names}
    return {name.replace("_", " "): _listed(value) for name, value in entries.items() if _is_told(value)}


def _is_told(value: object) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _listed(value: object) -> object:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else value


def _term_weights(config: TrainConfig) -> str:
    return ", ".join(f"{term} {config.weight(term)}" for term in config.terms) or "none"


def _license(dataset: DatasetSpec, store: TargetStore) -> str:
    try:
        return load_manifest(store.source, store.source_root).license or "not stated"
    except (LFIError, OSError):
        return "not known"


def _scores(run: Path, weights: str) -> tuple[str, dict[str, float | None]]:
    """Return which weights were scored, and the scores: the latest of `weights`, of others, or of training's end."""
    record = config_fields(run)
    results = [each for each in read_results(run, "classification") if is_of_validation(each, record)]
    result = next(iter([r for r in reversed(results) if r.settings.get("weights") == weights] or results[-1:]), None)
    if result is not None:
        return str(result.settings.get("weights", "last")), _flat({**result.scores, **result.details})
    return "last", _flat(read_json(run / SUMMARY)) if (run / SUMMARY).is_file() else {}


def _flat(content: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scores of classification in `content`, those per domain as scores of their own."""
    scores = {key: value for key, value in content.items() if key.startswith(_SCORE_NAMES)}
    flat: dict[str, float | None] = {}
    for key, value in scores.items():
        parts = {f"{key}: {part}": each for part, each in value.items()} if isinstance(value, Mapping) else {key: value}
        flat |= {part.replace("_", " "): each for part, each in parts.items() if each is None or _is_number(each)}
    return flat


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checks(check: Check, onnx: bool, onnx_differs: float | None) -> dict[str, object]:
    rows: dict[str, object] = {
        "loaded by timm, compared with the trained student on": f"{check.images} images, {check.noise} of noise",
        "largest difference of features": f"{check.features:.1e}",
        "largest difference of logits": "not compared" if check.logits is None else f"{check.logits:.1e}",
        "largest difference of timm's transform of an image": f"{check.inputs:.1e}",
    }
    if onnx:
        rows["largest difference of ONNX from PyTorch"] = (
            "not compared (no onnxruntime)" if onnx_differs is None else f"{onnx_differs:.1e}"
        )
    return rows


def _whole_checks(check: WholeCheck) -> dict[str, object]:
    rows: dict[str, object] = {}
    if check.logits is not None:
        rows[f"largest difference of the whole model's logits, {check.images} images"] = f"{check.logits:.1e}"
    if check.peaks is not None:
        rows["maps of the whole model whose peak is the student's"] = f"{100 * check.peaks:.1f} %"
    return rows


NOT_EVALUATED = "not evaluated"

_HEADS = {
    INSIDE: "The trained head is timm's classifier: the model gives one logit a class, named in `config.json`.",
    APART: (
        f"The model gives pooled features. The trained linear head is in `{HEAD}` (`weight`, `bias`), to be applied to "
        "them: timm's own classifier of this architecture is more than one linear layer."
    ),
    QUERIES: (
        "The timm model gives pooled features. What answers are interaction queries, one for each class, which read "
        "the backbone's layers: **they are in the whole model** (`lfi.json`, `lfi.safetensors`), and scores below are "
        "of it."
    ),
    NONE: "The model gives pooled features; the student was trained without a task head.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Content of a model card. Texts may hold anything: they are escaped.

    Attributes:
        title: name of the run.
        folder: name of the exported directory.
        taught: how it was trained, to follow "A small vision model".
        head: one of the places that `PlainModel.head` names.
        parameters: of the exported model.
        model: rows about the student.
        data: rows about the data and the teacher.
        training: rows about the run.
        command: the command line that trained it; may be empty.
        weights: which checkpoint was exported.
        scored: which checkpoint the scores are of.
        scores: name -> share in [0, 1], or None where it could not be scored.
        checks: rows about how the export was checked.
        onnx: whether `model.onnx` is there.
        whole: whether the whole model is there.
    """

    title: str
    folder: str
    taught: str
    head: str
    parameters: int
    model: Mapping[str, object]
    data: Mapping[str, object]
    training: Mapping[str, object]
    command: str = ""
    weights: str = "last"
    scored: str = "last"
    scores: Mapping[str, float | None] = field(default_factory=dict)
    checks: Mapping[str, object] = field(default_factory=dict)
    onnx: bool = False
    whole: bool = False


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the front matter that the Hugging Face hub reads."""
    parts = [
        _front_matter(facts.head),
        f"# {_plain(facts.title)}",
        f"A small vision model {_plain(facts.taught)}. It is a plain timm model: no training code is needed "
        "to use it, and no parameter was added to it. " + _HEADS[facts.head],
        "## Use\n\n" + _usage(facts),
        "## Model\n\n" + _table({**facts.model, "parameters": f"{facts.parameters:,}"}),
        "## Data and teacher\n\n" + _table(facts.data),
        "## Training\n\n" + _table({**facts.training, "exported weights": facts.weights}) + _command(facts.command),
        "## Scores\n\n" + _model_card_scores(facts),
        "## How this export was checked\n\n" + _table(facts.checks),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(head: str) -> str:
    task = "image-classification" if head == INSIDE else "image-feature-extraction"
    lines = ["library_name: timm", f"pipeline_tag: {task}", "tags:", f"- {task}", "- timm", "- distillation"]
    return "\n".join(["---", *lines, "---"])


def _usage(facts: CardFacts) -> str:
    folder = "".join(letter for letter in facts.folder if letter.isprintable() and letter not in "\"'\\`")
    lines = [
        "```python",
        "import timm",
        "",
        f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"',
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
        "output = model(transform(image)[None])  # image: PIL, RGB",
        "```",
        "",
        "Images are resized whole, their aspect ratio ignored, as in training.",
    ]
    if facts.onnx:
        lines[-1] += " `model.onnx` is the same model: input `images` (normalised, any batch size), output `output`."
    if facts.whole:
        lines += [
            "",
            "With its head, and with a map of where it looked for each answer where the head is made of queries:",
            "",
            "```python",
            "from lfi_pipeline.exporting import load",
            "",
            f'model = load("{folder}")',
            'prediction = model.predict("image.jpg")  # names, scores and maps',
            "logits, maps = model(images)  # uint8 [B, 3, H, W]",
            "```",
        ]
    return "\n".join(lines)


def _model_card_scores(facts: CardFacts) -> str:
    if not facts.scores:
        return f"{NOT_EVALUATED.capitalize()}."
    table = _table({name: _share(value) for name, value in facts.scores.items()}, ("score", "value"))
    if facts.scored == facts.weights:
        return table
    return (
        f"These exported weights (`{facts.weights}`): {NOT_EVALUATED}. Scores that the run holds, of its "
        f"`{facts.scored}` weights:\n\n{table}"
    )


def _share(value: float | None) -> str:
    return NOT_EVALUATED if value is None else f"{100 * value:.2f} %"


def _command(command: str) -> str:
    # indented code: nothing in it can end the block
    return f"\n\nTrained by:\n\n    {' '.join(command.split())}" if command.strip() else ""


def _table(rows: Mapping[str, object], names: Sequence[str] = ("", "")) -> str:
    body = [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {names[0]} | {names[1]} |", "|---|---|", *body])


def _plain(value: Any) -> str:
    """Return `value` as one line of text in which Markdown and HTML are escaped."""
    text = " ".join(str(value).split())
    for letter in "\\`*_[]|<>#":
        text = text.replace(letter, f"\\{letter}")
    return text
