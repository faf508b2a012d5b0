"""A home in an object store beside those that only move files: a model there and back, and what a stage of shards asks of the store.

    python -m bench.object_store [--gb 1.0] [--shards 200] [--repeat 3]

The store is moto's S3 server in a process of its own, on loopback and this machine's cores, so speeds are ratios, not what a network
gives. The peer is boto3's transfer manager, which `aws s3 cp` is made of, with its defaults. Here each part that is read is verified
by its sha256, there it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bench.facts import facts
from spin_core.store import Spec, Store
from spin_core.store.locks import nobody
from tests.s3 import apart

_ROWS = 500  # a shard's, for requests a row
Move = Callable[[Path, int], None]


def _ours(place: Path, url: str) -> tuple[Move, Move]:
    def spec(number: int) -> Spec:
        return Spec("model", 1, {"n": number})

    def up(file: Path, number: int) -> None:
        os.environ["SPINFLOW_CACHE"] = str(place / f"up-{number}")
        Store(url).build(spec(number), lambda out: os.link(file, out / "model") or None)

    def down(target: Path, number: int) -> None:
        os.environ["SPINFLOW_CACHE"] = str(target)
        store = Store(url)
        assert (store.ref(spec(number)).path / "model").is_file()

    return up, down


def _boto3(endpoint: str, bucket: str) -> tuple[Move, Move]:
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)

    def up(file: Path, number: int) -> None:
        client.upload_file(str(file), bucket, f"boto3/{number}")

    def down(target: Path, number: int) -> None:
        target.mkdir()
        client.download_file(bucket, f"boto3/{number}", str(target / "model"))

    return up, down


def _timed(move: Move, file: Path, number: int) -> float:
    started = time.perf_counter()
    move(file, number)
    return round(time.perf_counter() - started, 3)


def moved(environment: dict[str, str], gb: float, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Seconds up and down, by who moves; alternating."""
    url, endpoint = environment["HOME_URL"], environment["AWS_ENDPOINT_URL"]
    bucket = url.split("/")[2]
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-object-store-") as folder:
        place = Path(folder)
        ways = {"spinflow": _ours(place, url), "boto3": _boto3(endpoint, bucket)}
        for number in range(repeat):
            (place / "model").write_bytes(os.urandom(int(gb * 1e9)))
            for name, (up, down) in ways.items():
                times = found.setdefault(name, {"up": [], "down": []})
                times["up"].append(_timed(up, place / "model", number))
                times["down"].append(_timed(down, place / "down", number))
                for copy in (place / "down", place / f"up-{number}"):
                    shutil.rmtree(copy, ignore_errors=True)
    return found


def asked(environment: dict[str, str], shards: int) -> dict[str, Any]:
    """Requests of a stage of shards under a campaign's lock, by method and folder, and one shard's."""
    with tempfile.TemporaryDirectory(prefix="bench-object-store-") as folder:
        os.environ["SPINFLOW_CACHE"] = folder
        store = Store(environment["HOME_URL"])

        def count() -> dict[str, int]:
            found: dict[str, int] = httpx.get(environment["COUNTS"]).json()["requests"]
            return found

        with store.locked(store.campaign_folder("c") / ".lock", nobody):
            store.all()
            before, started = count(), time.perf_counter()
            for number in range(shards):
                store.build(Spec("shard", 1, {"n": number}), lambda out: (out / "shard.parquet").write_bytes(os.urandom(100_000)) and None)
            seconds, after = time.perf_counter() - started, count()
    new = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    return {
        "shards": shards,
        "requests": new,
        "a_shard": sum(new.values()) / shards,
        "a_row": sum(new.values()) / shards / _ROWS,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="of the model")
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with apart() as environment:
        os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
        times, stage = moved(environment, options.gb, options.repeat), asked(environment, options.shards)
    for name, found in times.items():
        speed = {what: options.gb * 1000 / statistics.median(seconds) for what, seconds in found.items()}
        print(f"{name}: {speed['up']:.0f} MB/s up, {speed['down']:.0f} MB/s down")
    print(f"{stage['a_shard']:.1f} requests a shard, {stage['a_row']:.4f} a row of shards of {_ROWS}")
    result = {
        **facts("object_store", "obstore", "boto3", "moto"),
        "load_before": os.getloadavg()[0],
        "gb": options.gb,
        "seconds": times,
        "stage": stage,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
