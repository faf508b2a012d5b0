"""Log-probs of both answers under a frozen model."""
