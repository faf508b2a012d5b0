"""SFT data to `prompts`: finding it, reading it row by row, recognising its shape, choosing the turn, splitting."""
