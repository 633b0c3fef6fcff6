"""The README of an export: what the model is, what it was taught by, how it scored and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lfi_pipeline.export.checkpoint import HEAD
from lfi_pipeline.export.plain import APART, INSIDE, NONE, SLOTS

NOT_EVALUATED = "not evaluated"

_HEADS = {
    INSIDE: "The trained head is timm's classifier: the model gives one logit a class, named in `config.json`.",
    APART: (
        f"The model gives pooled features. The trained linear head is in `{HEAD}` (`weight`, `bias`), to be applied to "
        "them: timm's own classifier of this architecture is more than one linear layer."
    ),
    SLOTS: (
        "The model gives pooled features. In training, interaction slots read the backbone's layers and fed the task "
        "head beside these features. **The slots and the head are not in this model**: scores below are of the student "
        "with its slots."
    ),
    NONE: "The model gives pooled features; the student was trained without a task head.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """What a model card tells. Texts may hold anything: they are escaped.

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
        "## Scores\n\n" + _scores(facts),
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
    return "\n".join(lines)


def _scores(facts: CardFacts) -> str:
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
    """Text that stays in its cell and means nothing to Markdown or HTML."""
    text = " ".join(str(value).split())
    for letter in "\\`*_[]|<>#":
        text = text.replace(letter, f"\\{letter}")
    return text
