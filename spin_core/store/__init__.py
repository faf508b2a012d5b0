"""Content-addressed artifacts under one home."""

from spin_core.store.artifacts import MANIFEST, Ref, Spec, Store, sha256_file

__all__ = ["MANIFEST", "Ref", "Spec", "Store", "sha256_file"]
