"""spin_core: Self-Play Fine-Tuning (SPIN, arXiv 2401.01335) as a library. It never imports Prefect."""

__version__ = "0.1.0"
