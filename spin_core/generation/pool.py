"""The pool that keeps an engine alive between shards and between stages."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from spin_core import process
from spin_core.errors import Cancelled, ChildCrash, SpinflowError
from spin_core.generation.engine import Engine
from spin_core.generation.transformers_engine import TransformersEngine
from spin_core.generation.vllm_server import VllmServer
from spin_core.recipe import Recipe
from spin_core.store import Ref, Store

_MAX_FAILED_STARTS = 3


class EnginePool:
    """One engine for one model at a time, started when it is first asked for and started again when it died.

    Leases share the engine, so the shards in flight fill its batch together.
    """

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._model: Ref | None = None
        # Linux ends a PDEATHSIG child with the *thread* that started it; this thread lives as long as the pool
        self._starter = ThreadPoolExecutor(1, "engine-starter")
        self._started = time.monotonic()
        self._tokens = 0
        self._failed_starts = 0
        self._stopped = False

    def lease(self, model: Ref) -> Engine:
        """The running engine of `model`; ends another model's engine first. Raises ChildCrash if it does not start."""
        with self._lock:
            if self._stopped:
                raise Cancelled("the run was ended")
            if self._engine is not None and self._model == model and self._engine.alive():
                return self._engine
            self._end()
            self._engine = self._start_bounded(model)
            self._model = model
            self._started, self._tokens = time.monotonic(), 0
            return self._engine

    def _start_bounded(self, model: Ref) -> Engine:
        """A model that never starts is told once, not once a shard and retry."""
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise SpinflowError(f"the engine did not start {self._failed_starts} times in a row", remedy=f"see {self._log(model)}")
        try:
            engine = self._starter.submit(self._start, model).result()
        except ChildCrash:
            self._failed_starts += 1
            raise
        self._failed_starts = 0
        return engine

    def _log(self, model: Ref) -> Path:
        return self._store.log_path(f"engine-{model.digest}")

    def _start(self, model: Ref) -> Engine:
        factory = VllmServer if self._recipe.generation.engine == "vllm" else TransformersEngine
        return factory(model.path, self._recipe, self._log(model))

    def count(self, tokens: int) -> None:
        """Adds sampled tokens to the engine's account."""
        self._tokens += tokens

    @property
    def rate(self) -> float:
        """The engine's tokens/s since it was ready."""
        return self._tokens / max(1e-9, time.monotonic() - self._started)

    def stop(self) -> None:
        """Ends the engine for good: a later lease raises Cancelled. Does not wait for an engine that is starting."""
        self._stopped = True
        process.end_all()  # the lock is held while an engine starts
        self.close()

    def close(self) -> None:
        """Ends the engine, if one runs. The pool can be used again."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._model = None

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self._starter.shutdown()
