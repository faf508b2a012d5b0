"""Benches for a bare GPU machine: torch, transformers, accelerate and this repository are enough."""
