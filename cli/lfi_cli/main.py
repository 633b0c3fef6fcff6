"""Entry point of `lfi`."""

from __future__ import annotations

import typer

from lfi_cli.bench import app as bench
from lfi_cli.compare import compare
from lfi_cli.datasets import datasets
from lfi_cli.demo import demo
from lfi_cli.evaluate import evaluate
from lfi_cli.export import export
from lfi_cli.extract_teacher import extract_teacher
from lfi_cli.grouped import EvaluationCommand, SettingsCommand
from lfi_cli.inspect import inspect
from lfi_cli.make_scenes import make_scenes
from lfi_cli.pack import pack
from lfi_cli.plan import plan
from lfi_cli.predict import predict
from lfi_cli.report import report
from lfi_cli.reproduce import reproduce
from lfi_cli.study import app as study
from lfi_cli.sweep import sweep
from lfi_cli.teachers import teachers
from lfi_cli.train import train
from lfi_cli.verify import verify

app = typer.Typer(
    name="lfi",
    help="Teach a small vision model how a vision-language model looks at images. Start with: lfi demo",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)
GROUPED = {"train": SettingsCommand, "sweep": SettingsCommand, "evaluate": EvaluationCommand}
for name, function in (
    ("demo", demo),
    ("datasets", datasets),
    ("teachers", teachers),
    ("make-scenes", make_scenes),
    ("plan", plan),
    ("extract-teacher", extract_teacher),
    ("inspect", inspect),
    ("pack", pack),
    ("verify", verify),
    ("train", train),
    ("sweep", sweep),
    ("evaluate", evaluate),
    ("export", export),
    ("predict", predict),
    ("compare", compare),
    ("report", report),
    ("reproduce", reproduce),
):
    app.command(name, cls=GROUPED.get(name))(function)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


def main() -> None:
    """Run the command line."""
    app()
