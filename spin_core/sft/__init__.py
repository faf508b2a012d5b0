"""A warm start: θ_0 made from a base model by SFT on the rows that self-play then uses."""
