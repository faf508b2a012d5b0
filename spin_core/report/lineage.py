"""What an iteration was made of: its artifacts, and theirs."""

from __future__ import annotations

from collections import Counter

from spin_core.campaign.ledger import Turn

_STAGES = ("prompts", "opponent", "pairs", "reference", "trained", "model", "evaluation")


def made_of(turn: Turn) -> list[dict[str, str]]:
    """A row an artifact."""
    rows = []
    for name in filter(turn.made.__contains__, _STAGES):
        manifest = turn.ref(name).manifest
        kinds = Counter(parent["kind"] for parent in manifest["parents"])
        parents = [f"{p['kind']}/{p['digest'][:12]}" for p in manifest["parents"] if p["kind"] not in {"shard", "judged"}]
        parents += [f"{kinds[kind]} {what}" for kind, what in (("shard", "shards"), ("judged", "judgements")) if kinds[kind]]
        artifact = f"{manifest['kind']}/{manifest['digest'][:12]}"
        seconds = f"{manifest['facts']['seconds']:.1f}"
        rows.append({"stage": name, "artifact": artifact, "made from": ", ".join(parents), "seconds": seconds})
    return rows
