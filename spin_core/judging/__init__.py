"""What each player is worth alone, by evaluators: an artifact a player and evaluator."""
