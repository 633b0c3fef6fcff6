"""How training images are augmented: settings alone, which import no torch. `augment` and `mixing` carry them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Alias, Option, check

TOP = 10.0
"""Largest magnitude of a change of colour."""
RAND_AUGMENT = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
)
"""Changes of colour that RandAugment draws from."""
COLOUR_CHANGES = (*RAND_AUGMENT, "hue", "greyscale", "blur")
"""Names of all changes of colour."""
MIXES = ("none", "maps")
FONT = "font"
DOMAINS = ("colour", "outline", "grey", "photo", "varied", "icon", "emblem", FONT)
"""Names of the visual domains of the embedded data set; the last draws with an emoji font of the user's."""


def _scale(least: float) -> tuple[float, float]:
    return least, 1.0


def _ratio(largest: float) -> tuple[float, float]:
    return (1 / largest if largest else largest), largest


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Distribution of `Geometry`, that of random resized crop (Szegedy et al., CVPR 2015, section 6) and flip."""

    scale: Annotated[
        tuple[float, float],
        Option(
            "Area of a crop, as a share of the image; 1 1 switches cropping off.",
            gt=0,
            le=1,
            metavar="MIN MAX",
            aliases=(Alias("least_area", float, _scale),),
        ),
    ] = (0.5, 1.0)
    ratio: Annotated[
        tuple[float, float],
        Option(
            "Width over height of a crop, relative to the image's.",
            gt=0,
            metavar="MIN MAX",
            aliases=(Alias("aspect", float, _ratio),),
        ),
    ] = (3 / 4, 4 / 3)
    hflip: Annotated[float, Option("Probability of mirroring an image.", ge=0, le=1, aliases=("flip",))] = 0.5

    def __post_init__(self) -> None:
        check(self)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ConfigError(
                    f"{name} must be a least and a largest value, got {low:g} and {high:g}.", argument=name
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Photometric:
    """Distribution of changes of colour and sharpness, RandAugment's without those of geometry."""

    ops: Annotated[int, Option("Changes of colour on each image; 0: none.", name="randaugment", ge=0)] = 0
    magnitude: Annotated[
        float, Option("Mean strength of a change of colour, on timm's scale from 0 to 10.", ge=0, le=TOP)
    ] = 9.0
    spread: Annotated[float, Option("Standard deviation of the strength.", name="magnitude_spread", ge=0, le=TOP)] = 0.5
    pool: Annotated[
        tuple[str, ...],
        Option(
            "A change of colour to draw from.",
            name="randaugment_pool",
            choices=COLOUR_CHANGES,
            noun="photometric operation",
            at_least_one=True,
            metavar="TEXT",
        ),
    ] = RAND_AUGMENT

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """Distribution of `Mix`. With both parameters above 0 each pair draws one of mixup and cutmix, equally often."""

    mix: Annotated[
        str,
        Option(
            "maps: what the teacher's map leaves out of an image is replaced by another image of the batch.",
            choices=MIXES,
        ),
    ] = "none"
    maps_probability: Annotated[
        float, Option("That an image is cut by its map, with mix=maps.", name="mix_maps_prob", ge=0, le=1)
    ] = 0.9

    mixup: Annotated[float, Option("Blend pairs of images: both parameters of Beta; 0: never.", ge=0)] = 0.0
    cutmix: Annotated[float, Option("Paste a box of one image into another, as mixup; 0: never.", ge=0)] = 0.0
    probability: Annotated[
        float, Option("That a pair is mixed at all.", name="mixup_prob", ge=0, le=1, aliases=("mix_probability",))
    ] = 1.0

    def __post_init__(self) -> None:
        check(self)

    @property
    def active(self) -> bool:
        """Whether anything is ever mixed."""
        return self.cuts or self.pairs

    @property
    def cuts(self) -> bool:
        """Whether images are ever cut by their maps."""
        return self.mix == "maps" and self.maps_probability > 0

    @property
    def pairs(self) -> bool:
        """Whether mixup or cutmix are ever drawn."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """Everything that determines a rendering of the embedded data set."""

    train: Annotated[int, Option("Scenes in the train split, domains taking turns.", ge=1)] = 4000
    val: Annotated[int, Option("Scenes in the val split, domains and held-out domains taking turns.", ge=1)] = 800
    test: Annotated[
        int | None, Option("Scenes in a test split like val, of other scenes; left out: there is none.", ge=1)
    ] = None
    domains: Annotated[
        tuple[str, ...],
        Option(
            "Domains of all splits: colour, outline, grey, photo and varied draw OpenMoji, icon and emblem two sets of icons, "
            "font your own font.",
            separator=",",
            at_least_one=True,
            choices=DOMAINS,
            noun="domain",
            metavar="DOMAIN,...",
        ),
    ] = ("colour", "outline", "grey")
    held_out: Annotated[
        tuple[str, ...],
        Option(
            "Domains of the val and test splits only, for cross-domain scores; none: no such domain.",
            separator=",",
            empty="none",
            choices=DOMAINS,
            noun="domain",
            metavar="DOMAIN,...",
        ),
    ] = ("photo",)
    font: Annotated[
        Path | None, Option("An emoji font of your own, such as NotoColorEmoji.ttf, for the domain font.")
    ] = None
    size: Annotated[int, Option("Pixels a side.", ge=32, le=1024)] = 64
    object_scale: Annotated[float, Option("Size of the objects; smaller is harder.", ge=0.3, le=1.35)] = 1.2
    seed: Annotated[int, Option("The same seed gives the same pictures.", ge=0)] = 0
    categories: Annotated[
        tuple[str, ...] | None,
        Option("What is drawn, such as dog,cat,crown; left out: all 64.", separator=",", metavar="NAME,..."),
    ] = None
    spurious: Annotated[
        float | None,
        Option(
            "Of these scenes, one object each, a share of the training pictures shows it before the background of its own "
            "category; in val every background is equally likely, and domain `conflicting` is where it is another's. In place "
            "of domains and held-out.",
            gt=0,
            le=1,
            metavar="SHARE",
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)
        both = set(self.domains) & set(self.held_out)
        if both:
            raise ConfigError(f"A held-out domain must not be trained on; in both lists: {', '.join(sorted(both))}.")
        if (FONT in self.domains + self.held_out) != (self.font is not None):
            raise ConfigError(
                f"The domain {FONT} and a font go together, got domains {', '.join(self.domains + self.held_out)} and font "
                f"{self.font}. Give both or neither.",
                argument="font",
            )
