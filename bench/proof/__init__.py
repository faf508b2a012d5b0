"""Does self-play keep what it wins? All arms on small tasks whose distribution is known: `python -m bench.proof --help`."""
