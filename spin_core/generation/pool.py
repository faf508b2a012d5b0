"""The pool that keeps an engine alive between shards and between stages."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from spin_core.generation.engine import Engine
from spin_core.generation.transformers_engine import TransformersEngine
from spin_core.generation.vllm_server import VllmServer
from spin_core.recipe import Recipe
from spin_core.store import Ref, Store


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

    def lease(self, model: Ref) -> Engine:
        """The running engine of `model`; ends another model's engine first. Raises ChildCrash if it does not start."""
        with self._lock:
            if self._engine is not None and self._model == model and self._engine.alive():
                return self._engine
            self._end()
            self._engine = self._starter.submit(self._start, model).result()
            self._model = model
            self._started, self._tokens = time.monotonic(), 0
            return self._engine

    def _start(self, model: Ref) -> Engine:
        log = self._store.log_path(f"engine-{model.digest}")
        factory = VllmServer if self._recipe.generation.engine == "vllm" else TransformersEngine
        return factory(model.path, self._recipe, log)

    def count(self, tokens: int) -> float:
        """Adds sampled tokens; returns the engine's tokens/s since it was ready."""
        self._tokens += tokens
        return self._tokens / max(1e-9, time.monotonic() - self._started)

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
