"""The main player's turn: objective, log-probs, reference scoring, the trainer and its launch."""
