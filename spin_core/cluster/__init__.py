"""Ray as where children and engines run: the nodes of a cluster in place of this machine. Nothing else here knows Ray."""
