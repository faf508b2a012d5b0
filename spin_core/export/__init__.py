"""A model of a campaign as a folder that others can use: weights, the user's own tokenizer, a model card."""
