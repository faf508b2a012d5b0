"""Shards and human answers joined into pairs."""
