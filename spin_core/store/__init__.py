"""Content-addressed artifacts under one home."""

from spin_core.store.artifacts import Store
from spin_core.store.files import content_digest, sha256_file
from spin_core.store.names import MANIFEST, Ref, Spec

__all__ = ["MANIFEST", "Ref", "Spec", "Store", "content_digest", "sha256_file"]
