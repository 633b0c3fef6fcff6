"""The embedded teacher: a tiny CoCa trained on `scenes`, small enough for the wheel (see `recipe.py`)."""
