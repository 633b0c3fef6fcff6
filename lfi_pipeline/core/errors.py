"""Every error a user can cause, in one place.

Each class also derives from the builtin that a caller would naturally catch. Messages say what must hold, what was
found and what to do; errors of third-party libraries are mapped to these where they enter.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class LFIError(Exception):
    """Base of all errors that are the user's to mend; the command line prints them without a traceback.

    Attributes:
        argument: name of the one that the error is about, as the message writes it; None: there is no such one. Further
            arguments stand in backticks in a message. So the command line can show both as options.
    """

    def __init__(self, *args: object, argument: str | None = None) -> None:
        super().__init__(*args)
        self.argument = argument

    def within(self, where: str) -> Self:
        """Return the same error of a value inside of `where`, such as a file or a table; no argument is at fault."""
        outer = type(self).__new__(type(self))
        outer.args, outer.argument = (f"{where}: {self}",), None
        return outer


_MOST_CHOICES = 40  # listed; of more, the nearest
_NEAREST = 12


def nearest_names(name: str, names: Iterable[str], count: int) -> list[str]:
    """Return up to `count` of `names` that are most like `name`: what begins with it, the shortest first, then by spelling."""
    names = sorted(names)
    begun = sorted((each for each in names if name and each.lower().startswith(name.lower())), key=len)
    alike = difflib.get_close_matches(name, names, n=count, cutoff=0.0)
    return list(dict.fromkeys([*begun, *alike]))[:count]


class UnknownNameError(LFIError, ValueError):
    """A name that is not in a registry; the message lists the choices, or the nearest of many, and the nearest one."""

    def __init__(
        self,
        kind: str,
        name: str,
        choices: Iterable[str],
        *,
        near: str | None = None,
        argument: str | None = None,
        see: str = "",
    ) -> None:
        names = sorted(choices)
        first = nearest_names(name, names, 1)
        begins = bool(name and first) and first[0].lower().startswith(name.lower())
        alike = near or begins or difflib.get_close_matches(name, first)
        hint = f" Did you mean {near or first[0]!r}?" if alike else ""
        shown = names if len(names) <= _MOST_CHOICES else nearest_names(name, names, _NEAREST)
        more = f" and {len(names) - len(shown)} more{f' ({see})' * bool(see)}" if len(shown) < len(names) else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Choices: {', '.join(shown)}{more}.", argument=argument)


class MissingExtraError(LFIError, ImportError):
    """A package that an operation needs and that an extra of this project installs; names the extra."""


class ConfigError(LFIError, ValueError):
    """An option, or a combination of options, that cannot work."""


class TooLargeError(ConfigError):
    """A model that would be larger than its bound, raised before memory is taken for it."""


class DatasetError(LFIError, ValueError):
    """A data root that is missing, empty, or not laid out as its manifest says."""


class ImageReadError(LFIError, OSError):
    """An image file that cannot be decoded, or is too large to be safe."""


class TeacherError(LFIError, RuntimeError):
    """Teacher weights that can neither be found nor fetched, or that do not fit."""


class TargetsError(LFIError, ValueError):
    """A directory that is not a targets cache, or one whose version this release does not know."""


class NotTargetsError(TargetsError):
    """A directory that is not a targets cache, of whatever version."""


class SpecMismatchError(TargetsError):
    """A rerun whose spec differs from the one the cache was begun with; names the differing fields."""


class IncompleteTargetsError(TargetsError):
    """A cache in which some shards are not committed yet."""


class CorruptTargetsError(LFIError, OSError):
    """Bytes in the cache, or an image it refers to, that do not match their recorded checksum."""


class OutputExistsError(LFIError, FileExistsError):
    """An output directory that already holds something else."""


class OutputWriteError(LFIError, OSError):
    """An output that cannot be written: a full disk, a read-only place."""


class RunError(LFIError, ValueError):
    """A directory that is not a training run, or one that holds no checkpoint."""


class RunLockedError(RunError):
    """A run's directory in which another process trains; names it."""


class ExportError(LFIError, RuntimeError):
    """A student whose exported model would not be the trained one, so that nothing was written."""


class StudyError(LFIError, ValueError):
    """A rater's file or a key that is not of the study it is scored with, or that was changed by hand."""


class BenchmarkError(LFIError, RuntimeError):
    """A benchmark whose correctness check failed, so that it was not timed."""
