"""Which network processes of several nodes meet on."""

from __future__ import annotations

import os

import psutil
import ray

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface() -> dict[str, str]:
    """Variables that have them meet on the network that this node's cluster is on, where its environment does not say another: by
    themselves they take the one that the machine's own name is on, which often is loopback."""
    address = ray.util.get_node_ip_address()
    name = next((name for name, found in psutil.net_if_addrs().items() if any(one.address == address for one in found)), None)
    return {variable: name for variable in VARIABLES if name and variable not in os.environ}
