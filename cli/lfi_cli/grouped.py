"""Help of a command with many options: in groups, with the library's own defaults."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class SettingsCommand(TyperCommand):
    """A command whose options are settings of a run or of the machine.

    Such an option is None where it is not given. What it is then, the library says; it is asked when help is shown,
    so that no default is written twice and other commands do not wait for the library to load.
    """

    def defaults(self) -> dict[str, Any]:
        """What options are where they are not given."""
        import dataclasses

        from lfi_pipeline.training import Machine
        from lfi_pipeline.training.settings import default_settings

        return {**default_settings(), **dataclasses.asdict(Machine())}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a `rich_help_panel`, in the order of the options."""
        defaults = self.defaults()
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            shown = _shown(defaults.get(parameter.name or ""))
            name, told = record[0], record[1] + (f"  [default: {shown}]" if shown else "")
            plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or plain, []).append((name, told))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class EvaluationCommand(SettingsCommand):
    """A command whose options are those of the protocols of evaluation."""

    def defaults(self) -> dict[str, Any]:
        """What options are where they are not given."""
        from lfi_pipeline.evaluation.protocols import default_options

        return default_options()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, list | tuple):
        return ", ".join(str(entry) for entry in default)
    if isinstance(default, float):
        return f"{default:.4g}"
    return "" if default is None or default == {} else str(default)
