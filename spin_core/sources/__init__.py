"""SFT data to `prompts`: finding it, reading it row by row, recognising its shape, choosing the turn, splitting."""

from spin_core.sources.stage import reformat

__all__ = ["reformat"]
