"""Conversations to token ids."""
