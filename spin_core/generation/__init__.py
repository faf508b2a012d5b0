"""Sampling the opponent's answers: engines, the pool that keeps one alive, shards."""
