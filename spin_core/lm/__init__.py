"""The model's forward pass: packed layout, attention, log-probs, adapters."""
