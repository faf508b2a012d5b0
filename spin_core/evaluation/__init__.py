"""What a turn of self-play won, on held-out rows."""
