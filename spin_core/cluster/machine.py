"""The nodes of a Ray cluster as the machine that children and engines run on. Which GPU is whose is Ray's to say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from spin_core.cluster.disk import Made, RunHome
from spin_core.cluster.engines import RayEngine, bare, bring
from spin_core.cluster.host import Host, MakeEngine
from spin_core.cluster.lease import Lease, Wait
from spin_core.cluster.room import Need, Nodes, widest
from spin_core.cluster.wide import wide_engine
from spin_core.generation.engine import Ended, Engine, Sampler
from spin_core.generation.pool import engine_memory, local_engine
from spin_core.runtime.devices import never
from spin_core.runtime.errors import Cancelled, ChildCrash, SpinflowError
from spin_core.runtime.machine import Child, Command, Place, ThisMachine, parts_of, side_by_side, telling
from spin_core.runtime.memory import fp32_bytes
from spin_core.runtime.output import Output
from spin_core.runtime.progress import tell
from spin_core.store import Ref, Store

_LOOK_S = 2.0
_PLACED_S = 120.0
_GRACE_S = 5.0  # for the others of a training to say why they fail, once one has
_ALONE = Place(0)
_MORE_MEMORY = "add a node with as much, start one with a larger `ray start --memory`, or take a smaller model; then run again"
_FEWER_GPUS = "lower generation.tensor_parallel, or add nodes, and run again"


def no_command(place: Place) -> list[str]:
    """Of a child that is no other's rank."""
    return []


class ClusterMachine:
    """Children with devices run on the nodes, those without beside the flow: they read files that only its machine has to have."""

    def __init__(self, store: Store, nodes: Nodes, make_engine: MakeEngine = local_engine) -> None:
        self._store, self._nodes, self._make_engine, self._make_wide = store, nodes, make_engine, wide_engine
        self._here = ThisMachine(store)
        self._home = RunHome(store.url, str(store.home)) if store.url else None
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()

    # what there is

    def gpus(self) -> list[int]:
        """The GPUs of every living node that has any."""
        return sorted((node.gpus for node in self._nodes()), reverse=True)

    @property
    def device_count(self) -> int:
        """See `Machine`."""
        return max(1, sum(self.gpus()))

    @property
    def elsewhere(self) -> bool:
        """See `Machine`."""
        return self._home is not None

    def precision(self) -> str:
        """What `training.precision: auto` is on these GPUs: one of them is asked."""
        with self._leased(1) as lease:
            lease.place(never, self._wait("precision", Need(1)))
            return str(lease.ask("precision"))

    # children

    def run(self, child: Child, node: str = "") -> None:
        """See `Machine`."""
        if not node:
            self._here.run(child)
            return
        with self._leased(0, strategy=NodeAffinitySchedulingStrategy(node, soft=False)) as lease:
            lease.place(never)
            self._follow(lease, child)

    def spread(self, child: Child, most: int) -> None:
        """See `Machine`. More are asked for than there is room for: nodes that come meanwhile take part, and replace those that go."""
        need = Need(1, child.memory)
        asked, now = time.monotonic(), min(most, max(1, need.fits(self._nodes())))
        enough = threading.Event()  # one has found nothing left to do, so who still waits for a place need not come

        def one(part: Child) -> None:
            with self._leased(1, child.memory) as lease:
                try:
                    hope = self._nodes.hoped(child.name, need, enough.is_set, _MORE_MEMORY)
                    lease.place(hope, self._wait(child.name, need) if not part.part else None)
                except Cancelled:
                    return
                if part.part < now:
                    child.waited(time.monotonic() - asked)
                try:
                    self._follow(lease, part)
                except ChildCrash:
                    raise
                except BaseException:
                    enough.set()
                    raise
                enough.set()

        side_by_side([partial(one, part) for part in parts_of(child, min(most, 2 * now + 2), now)])

    def together(self, child: Child, command: Command) -> None:
        """See `Machine`. On as many nodes as there are, each with as many GPUs, so that most GPUs take part."""
        asked = time.monotonic()
        with self._group(child.name) as leases:
            child.waited(time.monotonic() - asked)
            address, port = leases[0].ask("meeting_point") if len(leases) > 1 else ("", 0)
            places = [Place(lease.gpus, len(leases), rank, address, port) for rank, lease in enumerate(leases)]
            failures: list[BaseException] = []

            def one(lease: Lease, part: Child, place: Place) -> None:
                try:
                    self._follow(lease, part, command, place)
                except SpinflowError as error:
                    if lease.ended:  # because another failed
                        return
                    failures.append(error)
                    time.sleep(_GRACE_S if len(leases) > 1 else 0.0)
                    for other in leases:  # they would wait for this one in a collective
                        other.end()

            parts = [*zip(leases, parts_of(child, len(leases)), places, strict=True)]
            side_by_side([partial(one, *part) for part in parts])
        if failures:
            raise telling(failures)

    def _follow(self, lease: Lease, child: Child, command: Command = no_command, place: Place = _ALONE) -> None:
        where = str(lease.where)
        tell(child.name, f"runs on {where}")
        read = Output(child.module, self._store.log_path(child.log), child.name, child.part, where)
        with read:

            def take(item: str | Made) -> None:
                if isinstance(item, Made):
                    self._store.receive(item.name, item.files)
                else:
                    read.take(item)

            status = lease.follow("run", child.module, child.job, child.env, command, place, self._home, on=take)
        read.end(status)

    # engines

    def starts(self, sampler: Sampler) -> list[Callable[[Ended], Engine]]:
        """A function an engine: for every GPU group that there is, and one more, which waits for a node to come."""
        groups = max(1, self._need(sampler).fits(self._nodes()))
        return [partial(self._start, sampler, part, groups) for part in range(groups + 1)]

    def _need(self, sampler: Sampler) -> Need:
        """What an engine asks for: GPUs of one node, or of several where none that is there has as many."""
        size = sampler.settings.tensor_parallel
        if 1 < size > max(self.gpus(), default=0):
            return Need(size, wide=True)
        return Need(size, engine_memory(sampler.settings.engine, fp32_bytes(sampler.model)))

    def _start(self, sampler: Sampler, part: int, parts: int, ended: Ended) -> Engine:
        """Waits for a place, which is asked for anew where nodes that come or go make it another need."""
        log = self._store.log_path(f"engine-{sampler.model.digest}" + (f"-{part}" if part else ""))
        while True:
            need = self._need(sampler)
            lease = self._wide_lease(need.gpus) if need.wide else self._lease(need.gpus, need.memory)
            wait = self._wait("engines", need, matters=self._has_no_place) if not part else None
            hope = self._nodes.hoped("an engine", need, ended, _FEWER_GPUS if need.gpus > 1 else _MORE_MEMORY)
            try:
                lease.place(partial(self._gives_up, need, sampler, hope), wait)
                if lease.group is not None and self._home:
                    self._bring(bare(sampler.model), lease.group, self._home)
                break
            except BaseException as error:
                lease.end()
                if not isinstance(error, Cancelled) or ended():
                    raise
        make = partial(self._make_wide, lease.group) if lease.group is not None else self._make_engine
        return RayEngine(lease, make, sampler, log, part, parts, self._home)

    def _bring(self, model: Ref, group: PlacementGroup, home: RunHome) -> None:
        """Has a model on every node of a group, under one path: that is where all workers of an engine read it."""
        with ExitStack() as also:
            bundles = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank) for rank in range(group.bundle_count)]
            leases = [also.enter_context(self._leased(0, strategy=bundle)) for bundle in bundles]
            for lease in leases:
                lease.place(_until(time.monotonic() + _PLACED_S, "the engine"))
            bring({lease.where.node: lease for lease in leases}.values(), model, home)

    def _gives_up(self, need: Need, sampler: Sampler, ended: Ended) -> bool:
        return ended() or self._need(sampler) != need

    def _wait(self, name: str, need: Need, matters: Callable[[], bool] = lambda: True) -> Wait:
        """A wait for a place, which says what is missing."""
        return Wait(name, lambda: self._nodes.lack(need), matters)

    def _has_no_place(self) -> bool:
        """Whether everything that this run has asked for waits; where an engine works, one more would only be welcome."""
        with self._lock:
            return not any(lease.where.node and not lease.ended for lease in self._leases)

    # leases

    def _lease(self, gpus: int, memory: int = 0, strategy: Any = None, group: PlacementGroup | None = None) -> Lease:
        lease = Lease(Host, gpus=gpus, memory=memory, strategy=strategy, group=group)
        with self._lock:
            self._leases = {one for one in self._leases if not one.ended} | {lease}
        return lease

    def _wide_lease(self, gpus: int) -> Lease:
        """A bundle a GPU, as vLLM wants them, on as few nodes as there are."""
        return self._lease(0, group=placement_group([{"GPU": 1}] * gpus, strategy="PACK"))

    @contextmanager
    def _leased(self, gpus: int, memory: int = 0, strategy: Any = None) -> Iterator[Lease]:
        lease = self._lease(gpus, memory, strategy)
        try:
            yield lease
        finally:
            lease.end()

    @contextmanager
    def _group(self, name: str) -> Iterator[Sequence[Lease]]:
        """A lease a node, on nodes that all have as many GPUs; planned anew while it waits, since nodes come and go."""
        planned, group = (0, 0), None
        wait = Wait(name, lambda: f"{planned[0]} × {planned[1]} GPUs are not free")
        leases: list[Lease] = []
        try:
            while group is None or not group.wait(_LOOK_S):
                plan = widest(self.gpus())
                if plan != planned:
                    if group is not None:
                        remove_placement_group(group)
                    count, gpus = planned = plan
                    group = placement_group([{"GPU": gpus}] * count, strategy="STRICT_SPREAD")
                wait.tell()
            wait.over()
            for rank in range(count):
                leases.append(self._lease(gpus, strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)))
            for lease in leases:
                lease.place(_until(time.monotonic() + _PLACED_S, "the training"))
            yield leases
        except RayError as error:
            raise ChildCrash(f"{name}: {error}", exit_code=-1, remedy="run again to continue") from None
        finally:
            for lease in leases:
                lease.end()
            if group is not None:
                remove_placement_group(group)

    def close(self) -> None:
        """Ends everything that this run has on the nodes."""
        with self._lock:
            leases, self._leases = self._leases, set()
        side_by_side([lease.end for lease in leases] or [lambda: None])


def _until(deadline: float, what: str) -> Callable[[], bool]:
    """For a group that has its nodes: what cannot be placed then was on one that has gone since."""

    def ended() -> bool:
        if time.monotonic() > deadline:
            raise ChildCrash(f"a node went before {what} began", exit_code=-1, remedy="run again to continue")
        return False

    return ended
