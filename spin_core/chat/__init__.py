"""Talking to players of a campaign, side by side."""
