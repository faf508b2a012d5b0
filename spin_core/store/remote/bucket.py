"""Bytes under names in an object store, with conditional writes. The only file that knows which library speaks to it.

obstore speaks to S3, Google Cloud Storage and Azure in one way, repeats what failed, and has create-if-absent and compare-and-swap for
all three, which neither fsspec's file systems nor pyarrow's have.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from spin_core.runtime.errors import BadInput, Unreachable
from spin_core.runtime.redact import redact

_REQUEST = timedelta(seconds=120)  # the longest that one request may take; parts have 32 MiB
_CONNECT, _SILENCE = timedelta(seconds=10), timedelta(seconds=30)
_TRIED = timedelta(minutes=4)  # a store that cannot be reached for a minute or two costs nothing but that
_AT_FIRST = timedelta(seconds=15)  # a wrong address should be told while its writer still looks
_RETRIES = 1000  # the time is the bound
_PAUSE_S = 2.0
_ROLE = "//169.254.169.254/"  # who is asked last for credentials
_PLACE = re.compile(r"(s3|gs|az)://[^/]+(/.*)?")
_NO_PLACE = "it is no place in an object store that is known"


@dataclass(frozen=True)
class Version:
    """Which state of an object was read or written, for the next write to be conditional on."""

    e_tag: str | None
    version: str | None


@dataclass(frozen=True)
class Entry:
    """A line of a listing."""

    name: str
    bytes: int
    changed: float  # seconds since the epoch, by the store's clock


class Bucket:
    """The objects under one URL. Names are relative to it. Everything raises Unreachable where the store does not answer for minutes,
    and BadInput where it refuses."""

    def __init__(self, connect: Callable[[timedelta], Any], url: str) -> None:
        """`connect` gives the library's store, which tries so long."""
        self._connect, self.url = connect, url.rstrip("/")
        self._tried = _AT_FIRST
        self._store = connect(_AT_FIRST)

    @classmethod
    def at(cls, url: str) -> Bucket:
        """`s3://bucket/prefix`, `gs://…` or `az://…`, with the credentials of the environment or of the machine's role."""
        if not _PLACE.fullmatch(url):
            raise BadInput(
                f"home {url}: {_NO_PLACE}", remedy="give a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
            )
        if not find_spec("obstore"):
            raise BadInput(f"home {url}: obstore is not installed", remedy="pip install 'spinflow[object-store]'")
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        client: Any = {"connect_timeout": _CONNECT, "read_timeout": _SILENCE, "timeout": _REQUEST}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        if endpoint.startswith("http://"):  # MinIO and the like in a network of one's own
            client["allow_http"] = True
        config: Any = {"endpoint": endpoint} if endpoint and url.startswith("s3") else None

        def connect(tried: timedelta) -> Any:
            retry: Any = {"max_retries": _RETRIES, "retry_timeout": tried}
            return from_url(url, config=config, client_options=client, retry_config=retry)

        try:
            return cls(connect, url)
        except (BaseError, ValueError) as error:
            raise BadInput(f"home {url}: {_first_line(error)}", remedy="check it, and the credentials in the environment") from None

    def read(self, name: str) -> tuple[bytes, Version] | None:
        """An object and its version, or None where there is none."""
        import obstore

        try:
            found: tuple[bytes, Version] = self._asked(lambda: _whole(obstore.get(self._store, name)), name)
        except FileNotFoundError:
            return None
        return found

    def get(self, name: str) -> bytes | None:
        """An object, or None."""
        found = self.read(name)
        return found[0] if found else None

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        import obstore

        try:
            self._asked(lambda: obstore.head(self._store, name), name)
        except FileNotFoundError:
            return False
        return True

    def put(self, name: str, data: bytes) -> Version:
        """Writes an object, whatever was there."""
        import obstore

        written = self._asked(lambda: obstore.put(self._store, name, data, use_multipart=False), name, absent=True)
        return _version(written)

    def create(self, name: str, data: bytes) -> Version | None:
        """Writes an object where there is none; None where something else is there."""
        return self._conditionally(name, data, "create")

    def replace(self, name: str, data: bytes, version: Version) -> Version | None:
        """Writes an object that is still at `version`; None where it is not."""
        return self._conditionally(name, data, {key: value for key, value in vars(version).items() if value is not None})

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there are none."""
        import obstore

        wanted = list(names)
        if wanted:
            self._asked(lambda: obstore.delete(self._store, wanted), wanted[0])

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below a folder, in no order. Raises BadInput where there is no such bucket."""
        import obstore

        def pages() -> list[Any]:
            return [entry for page in obstore.list(self._store, prefix=prefix) for entry in page]

        for entry in self._asked(pages, prefix, absent=True):
            yield Entry(entry["path"], entry["size"], entry["last_modified"].timestamp())

    def _conditionally(self, name: str, data: bytes, mode: Any) -> Version | None:
        """The library does not repeat such a write where its answer was lost, since it may have been done; what is there tells."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        deadline = time.monotonic() + self._tried.total_seconds()
        while True:
            try:
                written = obstore.put(self._store, name, data, mode=mode, use_multipart=False)
                self._answered()
                return _version(written)
            except (AlreadyExistsError, PreconditionError):
                found = self.read(name)
                return found[1] if found and found[0] == data else None
            except FileNotFoundError:
                if mode != "create":  # it was removed meanwhile
                    return None
                raise self._no_bucket() from None
            except Exception as error:
                told = self._told(error, name)
                if not isinstance(told, Unreachable) or time.monotonic() > deadline:
                    raise told from None
            time.sleep(_PAUSE_S)

    def _asked(self, call: Callable[[], Any], name: str, *, absent: bool = False) -> Any:
        """What the store answers; `absent`: a "not found" can only mean the bucket."""
        try:
            found = call()
        except FileNotFoundError:
            if absent:
                raise self._no_bucket() from None
            self._answered()
            raise
        except Exception as error:
            raise self._told(error, name) from None
        self._answered()
        return found

    def _answered(self) -> None:
        """From now on it is known to be there, and is waited for where it is away."""
        if self._tried != _TRIED:
            self._tried, self._store = _TRIED, self._connect(_TRIED)

    def _no_bucket(self) -> BadInput:
        return BadInput(f"home {self.url}: the bucket is not there", remedy="create it, or check the name and AWS_ENDPOINT_URL")

    def _told(self, error: Exception, name: str) -> Exception:
        """An error of the library as one of ours; one that is none of its own as it is."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        if "NoSuchBucket" in str(error) or ("list request" in str(error) and "404 Not Found" in str(error)):
            return self._no_bucket()
        if _ROLE in str(error):
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            return BadInput(f"home {self.url}: there are no credentials", remedy=remedy)
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            remedy = "check the credentials (AWS_ACCESS_KEY_ID, …, or the machine's role) and that they may read, write, list and delete"
            return BadInput(f"home {self.url}: access is refused", remedy=remedy)
        if isinstance(error, BaseError):
            return Unreachable(f"{self.url}/{name}: {redact(_first_line(error))}", remedy="check the network, then run again to continue")
        return error


def _whole(answer: Any) -> tuple[bytes, Version]:
    return bytes(answer.bytes()), _version(answer.meta)


def _version(found: Any) -> Version:
    return Version(found["e_tag"], found["version"])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
