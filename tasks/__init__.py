"""One thin Prefect task a stage: retry policy, run name, one call into spin_core."""
