"""Settings that are declared once: each field of a config dataclass says its type, default, range and help.

    @dataclass(frozen=True, kw_only=True, slots=True)
    class OptimizerConfig:
        lr: Annotated[float, Option("Peak of the schedule.", gt=0, aliases=("learning_rate",))] = 5e-4

        def __post_init__(self) -> None:
            check(self)

The command line, TOML files, `config.json`, sweeps and the functions of `lfi_pipeline` all read these declarations.
A field whose type is another such dataclass is a group; its fields are named as if they stood in the outer class, so
names are unique over all groups. Nothing here knows the command line, and nothing here imports torch: a wrong value is
reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.values import Choices, fitting

T = TypeVar("T")
DEVICE = "auto (CUDA where there is one), cpu, cuda or cuda:N."
THREADS = "Threads that compute on a CPU; 0: what OMP_NUM_THREADS says, else one a core."
"""Help of options that several configs have."""
_NEAR_NAMES = 5


@dataclass(frozen=True, slots=True)
class Alias:
    """An older name of an option. It is accepted and not shown.

    Attributes:
        name: the older name.
        kind: type of its value, where it is not the option's.
        convert: older value -> value of the option; None: they are the same.
    """

    name: str
    kind: Any = None
    convert: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """What is said of a field in `Annotated[type, Option(...)]`.

    Attributes:
        help: one or two sentences for the command line and the API's documentation; of a group, empty.
        panel: heading under which the help lists it; None: that of the group.
        name: of the option, where it is not the field's.
        aliases: older names, or `Alias` where the value was written differently too.
        gt, ge, lt, le: bounds of a number, or of each number of a list.
        choices: the texts that are allowed, or a function that returns them.
        noun: what a value is called in "Unknown NOUN 'x'"; None: the name of the option.
        at_least_one: whether a list must have an entry.
        positional: whether the command line takes it without a name.
        repeated: whether each occurrence on the command line is a value of its own, for a command that takes several.
        separator: of the entries of a list on the command line; None: the option is repeated instead.
        empty: the word for an empty list on the command line.
        flags: further spellings on the command line, without dashes.
        metavar: placeholder for the value in the help; None: by the type.
        cli: whether the command line offers it.
    """

    help: str = ""
    _: KW_ONLY
    panel: str | None = None
    name: str | None = None
    aliases: tuple[str | Alias, ...] = ()
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: Choices | None = None
    noun: str | None = None
    at_least_one: bool = False
    positional: bool = False
    repeated: bool = False
    separator: str | None = None
    empty: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    cli: bool = True


@dataclass(frozen=True, slots=True)
class Declared:
    """One option of a config class.

    Attributes:
        name: unique in the class.
        place: names of the fields that lead to it, from the outermost class on.
        kind: type of its value.
        default: its value where nobody gives one; `dataclasses.MISSING` where it must be given.
        option: what the field says of it.
        panel: heading in the help.
    """

    name: str
    place: tuple[str, ...]
    kind: Any
    default: Any
    option: Option
    panel: str | None

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING

    @property
    def aliases(self) -> tuple[Alias, ...]:
        """Its older names."""
        return tuple(each if isinstance(each, Alias) else Alias(each) for each in self.option.aliases)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The texts that are allowed; None: any."""
        chosen = self.option.choices
        return None if chosen is None else tuple(chosen() if callable(chosen) else chosen)


def declared(kind: Any) -> Mapping[str, Declared]:
    """Return the options of a config class by name, groups included, in the order of the fields."""
    return _declared(kind)


@functools.cache
def _declared(kind: Any) -> Mapping[str, Declared]:
    options: dict[str, Declared] = {}
    for each in _declarations(kind, (), None):
        if each.name in options:
            raise TypeError(f"{kind.__name__} declares the option {each.name!r} twice.")
        options[each.name] = each
    return options


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the config that `values` describe, by the names of the options; what is left out or None is the default.

    Args:
        kind: a config class.
        values: plain values (as JSON and TOML have them) or values of the options' own types.

    Raises:
        UnknownNameError: a name that is no option, or a value that is none of its choices; both list near ones.
        ConfigError: a value of the wrong type or out of range, or one that must be given and is not.
    """
    options = declared(kind)
    arguments: dict[str, Any] = {}
    for name, value in current_names(kind, values).items():
        if value is not None:
            _place(arguments, options[name].place, typed(options[name], value))
    for each in options.values():
        if each.required and values.get(each.name) is None:
            raise ConfigError(f"{each.name} must be given, got none. {each.option.help}", argument=each.name)
    built: T = _constructed(kind, arguments)
    return built


def flatten(config: Any) -> dict[str, Any]:
    """Return the values of a config by the names of its options, as plain JSON values; `build` undoes it."""
    flat: dict[str, Any] = {}
    for name, each in declared(type(config)).items():
        flat[name] = plain(functools.reduce(getattr, each.place, config))
    return flat


def defaults(kind: type[Any]) -> dict[str, Any]:
    """Return the default of every option as a plain value, as `flatten` does; None for a required one."""
    return {name: None if each.required else plain(each.default) for name, each in declared(kind).items()}


def current_names(kind: type[Any], values: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """Return `values` under the current names of the options; older names are translated.

    Args:
        kind: a config class.
        values: by name.
        strict: refuse names that are no options; otherwise they stay as they are.

    Raises:
        UnknownNameError: a name that is no option; lists near ones.
        ConfigError: a value is given under its older and its current name.
    """
    options = declared(kind)
    older = {alias.name: (each, alias) for each in options.values() for alias in each.aliases}
    result: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in values.items():
        if name in options:
            current, translated = name, value
        elif name in older:
            each, alias = older[name]
            current, translated = each.name, value
            if alias.convert is not None and value is not None:
                translated = alias.convert(fitting(alias.name, alias.kind or each.kind, value, each.option))
        elif strict:
            raise unknown_name("setting", kind, name)
        else:
            current, translated = name, value
        if result.get(current) is not None:
            raise ConfigError(f"{current} must be given once, found it under {names[current]} and {name}.")
        result[current], names[current] = translated, name
    return result


def unknown_name(noun: str, kind: Any, name: str) -> UnknownNameError:
    """Return the error that `name` is none of the options of `kind`, which lists those whose names are most like it."""
    names = {alias.name: each.name for each in declared(kind).values() for alias in each.aliases}
    names |= {each: each for each in declared(kind)}
    near = difflib.get_close_matches(name, names, n=_NEAR_NAMES, cutoff=0.0)
    best = difflib.get_close_matches(name, names, n=1)
    return UnknownNameError(noun, name, {names[each] for each in near}, near=names[best[0]] if best else None)


def check(config: Any) -> None:
    """Check every field of a config against its declaration; what is of another type but can be it, becomes it.

    A list becomes a tuple, a text a path, a whole number a float. For `__post_init__`: it changes the frozen instance.

    Raises:
        ConfigError: a value of the wrong type or out of range.
        UnknownNameError: a value that is none of the choices.
    """
    own: Any = type(config)
    for field, kind, option in _fields(own):
        if option is None:
            continue
        value = getattr(config, field.name)
        checked = fitting(field.name, kind, value, option)
        if checked is not value:
            object.__setattr__(config, field.name, checked)


def typed(option: Declared, value: Any) -> Any:
    """Return a plain value as a value of the option's type.

    Raises:
        ConfigError: a value of the wrong type or out of range.
        UnknownNameError: a value that is none of the choices.
    """
    return fitting(option.name, option.kind, value, option.option)


def plain(value: Any) -> Any:
    """Return a value as JSON has it; an object of another class is converted by its own method `plain`."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value.plain() if hasattr(value, "plain") else value


def command_words(*words: object, **options: Any) -> tuple[str, ...]:
    """Return a public command as it is typed after `lfi`, for plans and for advice.

    Args:
        words: its name and what is positional.
        options: by name. True is a bare flag, a list is joined by commas, a tuple repeats the option, None is left out.
    """
    typed_words = [str(word) for word in words]
    for name, value in options.items():
        spelt = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            typed_words.append(spelt if value else f"--no-{spelt[2:]}")
        elif isinstance(value, tuple):
            typed_words += [word for each in value for word in (spelt, str(each))]
        elif value is not None:
            typed_words += [spelt, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return tuple(typed_words)


def command_line(*words: object, **options: Any) -> str:
    """Return a public command as it is typed into a shell; arguments as `command_words`."""
    return shlex.join(["lfi", *command_words(*words, **options)])


# --- how classes are read -----------------------------------------------------------------------------------


@functools.cache
def _fields(kind: Any) -> tuple[tuple[dataclasses.Field[Any], Any, Option | None], ...]:
    """Fields of one class with their types and options; no option for a group."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        option = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Option)), None)
        inner = hint.__origin__ if get_origin(hint) is typing.Annotated else hint
        if option is None and not dataclasses.is_dataclass(inner):
            raise TypeError(f"{kind.__name__}.{field.name} must be Annotated[..., Option(...)].")
        fields.append((field, inner, None if dataclasses.is_dataclass(inner) else option))
    return tuple(fields)


def _declarations(kind: Any, place: tuple[str, ...], panel: str | None, group: Any = None) -> Iterable[Declared]:
    """Yield the declarations of a class; `group` is the instance whose values are the defaults, if there is one."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field, inner, option in _fields(kind):
        here = (*place, field.name)
        default = _default(field) if group is None else getattr(group, field.name)
        if option is None:
            said = next((m for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, Option)), Option())
            yield from _declarations(inner, here, said.panel or panel, None if default is MISSING else default)
            continue
        yield Declared(option.name or field.name, here, inner, default, option, option.panel or panel)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _place(arguments: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for name in place[:-1]:
        arguments = arguments.setdefault(name, {})
    arguments[place[-1]] = value


def _constructed(kind: Any, arguments: Mapping[str, Any], group: Any = None) -> Any:
    """Construct a class from nested arguments, inner groups first; what is left out is as in the instance `group`."""
    values = dict(arguments)
    for field, inner, option in _fields(kind):
        if option is None:
            default = _default(field) if group is None else getattr(group, field.name)
            if field.name in values or default is MISSING:
                values[field.name] = _constructed(
                    inner, values.get(field.name, {}), None if default is MISSING else default
                )
    return kind(**values) if group is None else dataclasses.replace(group, **values)
