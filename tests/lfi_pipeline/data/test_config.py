"""Settings of augmentation, of mixing and of scenes: older names, bounds, and what is refused."""

from __future__ import annotations

from itertools import product

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.data.config import COLOUR_CHANGES, RAND_AUGMENT, Augmentation, MixConfig, Photometric, ScenesConfig


def test_older_names_of_crop_and_flip_mean_what_they_meant() -> None:
    found = build(Augmentation, {"least_area": 0.25, "aspect": 2, "flip": 0})
    assert found == Augmentation(scale=(0.25, 1), ratio=(0.5, 2), hflip=0)
    assert build(Augmentation, flatten(found)) == found
    with pytest.raises(ConfigError, match="scale must be given once, found it under scale and least_area"):
        build(Augmentation, {"scale": [0.5, 1], "least_area": 0.5})


@pytest.mark.parametrize(
    ("values", "argument", "told"),
    [
        ({"least_area": 0}, "least_area", r"above 0 .*1, got 0"),
        ({"scale": (0.5, 1.5)}, "scale", r"above 0 .*1, got 0\.5, 1\.5"),
        ({"aspect": 0}, "aspect", r"positive .*, got 0"),  # and no division by it
        ({"aspect": 0.5}, "ratio", r"a least and a largest value, got 2 and 0\.5"),
        ({"scale": (0.5,)}, "scale", r"2 numbers, got \(0\.5,\)"),
        ({"hflip": 1.25}, "hflip", r"from 0 to 1, got 1\.25"),
    ],
)
def test_a_crop_that_cannot_be_is_refused_with_the_name_that_it_was_given(
    values: dict[str, object], argument: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{argument} must be {told}\.$") as raised:
        build(Augmentation, values)
    assert raised.value.argument == argument


@pytest.mark.parametrize("mix", ["none", "maps"])
def test_what_is_mixed_follows_from_the_probabilities(mix: str) -> None:
    for maps, mixup, cutmix, pair in product((0, 0.5), repeat=4):
        config = MixConfig(mix=mix, maps_probability=maps, mixup=mixup, cutmix=cutmix, probability=pair)
        assert config.cuts == (mix == "maps" and maps == 0.5)
        assert config.pairs == (pair == 0.5 and 0.5 in (mixup, cutmix))
        assert config.active == (config.cuts or config.pairs)
    assert not MixConfig().active


def test_mixing_is_built_by_the_names_of_its_options() -> None:
    found = build(MixConfig, {"mix": "maps", "mix_maps_prob": 0.25, "mix_probability": 0.75})
    assert (found.maps_probability, found.probability) == (0.25, 0.75)
    with pytest.raises(UnknownNameError, match=r"mix 'map'\. Did you mean 'maps'\? Choices: maps, none"):
        MixConfig(mix="map")


def test_randaugment_draws_from_what_is_known_and_never_from_nothing() -> None:
    assert set(RAND_AUGMENT) < set(COLOUR_CHANGES)
    assert Photometric(pool=COLOUR_CHANGES).pool == COLOUR_CHANGES
    with pytest.raises(UnknownNameError, match=r"photometric operation 'blurr'\. Did you mean 'blur'"):
        build(Photometric, {"randaugment_pool": ["blurr"]})
    with pytest.raises(ConfigError, match="randaugment_pool must name at least one, got none"):
        build(Photometric, {"randaugment_pool": []})
    with pytest.raises(ConfigError, match="magnitude must be from 0 to 10, got 11"):
        Photometric(magnitude=11)


def test_a_held_out_domain_of_scenes_is_not_trained_on() -> None:
    with pytest.raises(ConfigError, match="both lists: grey, photo"):
        ScenesConfig(domains=("photo", "colour", "grey"), held_out=("grey", "photo"))
    assert ScenesConfig(domains=("photo",), held_out=()).held_out == ()
    with pytest.raises(UnknownNameError, match=r"domain 'gray'\. Did you mean 'grey'"):
        ScenesConfig(held_out=("gray",))
    with pytest.raises(ConfigError, match="domains must name at least one"):
        ScenesConfig(domains=())
