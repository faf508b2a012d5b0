"""Content-addressed artifacts under one home."""

from spin_core.store.artifacts import MANIFEST, Ref, Spec, Store
from spin_core.store.files import content_digest, sha256_file

__all__ = ["MANIFEST", "Ref", "Spec", "Store", "content_digest", "sha256_file"]
