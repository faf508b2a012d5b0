"""A home in an object store: this machine's folder is a cache of it."""
