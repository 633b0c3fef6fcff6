"""Offline distillation of a vision-language model's interaction maps into small vision models (LFI)."""

__version__ = "0.1.0"
