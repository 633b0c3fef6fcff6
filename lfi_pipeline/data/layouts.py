"""What a manifest may say for each layout: the roles of a split's files and the options of its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lfi_pipeline.data.paths import why_unsafe


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutRules:
    """The form of one layout's part of a manifest.

    Attributes:
        roles: names that every split must give a path to.
        optional_roles: names that a split may give a path to.
        options: option name -> `text`, `path`, `names` or `paths`; all but `text` are required.
    """

    roles: frozenset[str] = frozenset()
    optional_roles: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)

    def fault(self, options: Mapping[str, Any], splits: Mapping[str, Mapping[str, str]]) -> str | None:
        """Say what of `options` or `splits` does not fit; None where all does."""
        for name in options.keys() - self.options.keys():
            return f"its layout has no option {name!r}; options: {', '.join(sorted(self.options)) or 'none'}"
        for name, kind in self.options.items():
            if name not in options:
                if kind == "text":
                    continue
                return f"its layout needs option {name!r} ({kind})"
            wrong = _fault_of_option(options[name], kind)
            if wrong:
                return f"option {name!r} {wrong}"
        for split, roles in splits.items():
            if missing := self.roles - roles.keys():
                return f"split {split!r} must say {', '.join(sorted(missing))}"
            if unknown := roles.keys() - self.roles - self.optional_roles:
                known = ", ".join(sorted(self.roles | self.optional_roles)) or "nothing"
                return f"split {split!r} says {', '.join(sorted(unknown))}; this layout knows {known}"
        return None


def _fault_of_option(value: object, kind: str) -> str | None:
    if kind in ("text", "path"):
        if not isinstance(value, str):
            return f"must be text, got {value!r}"
        return _fault_of_path(value) if kind == "path" else None
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        return f"must be a list of texts, got {value!r}"
    if len(set(value)) != len(value):
        return f"must not repeat an entry, got {value!r}"
    return next(filter(None, map(_fault_of_path, value)), None)


def _fault_of_path(path: str) -> str | None:
    reason = why_unsafe(path)
    return f"must be a path below the data root, and {path!r} {reason}" if reason else None


LAYOUTS: Mapping[str, LayoutRules] = {
    "coco": LayoutRules(roles=frozenset({"images", "captions", "instances"}), options={"domain_field": "text"}),
    "imagefolder": LayoutRules(roles=frozenset({"folder"})),
    "pacs": LayoutRules(
        optional_roles=frozenset({"list"}),
        options={
            "domains": "names",
            "classes": "names",
            "image_folders": "paths",
            "list_folders": "paths",
            "may_be_absent": "paths",
        },
    ),
    "tiny-imagenet": LayoutRules(
        roles=frozenset({"images"}),
        optional_roles=frozenset({"annotations"}),
        options={"folders": "paths", "wnids": "path", "words": "path"},
    ),
    "vlcs": LayoutRules(
        optional_roles=frozenset({"folder"}),
        options={"domains": "names", "official_domains": "names", "classes": "names", "folders": "paths"},
    ),
    "webdataset": LayoutRules(roles=frozenset({"tars"})),
}
