"""Measurements against named peers; each ends with one JSON line."""
