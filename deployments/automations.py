"""What the server does by itself: finds dead runs, starts crashed ones again, and tells a person when that did not help.

A run whose worker and flow process died together stays Running for ever, since nobody is left to say otherwise. Its
heartbeats stop, though. Crashed runs of deployments are scheduled again: everything finished is found in the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.notifications import CustomWebhookNotificationBlock, NotificationBlock, SendgridEmail, SlackWebhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, ResourceSpecification
from pydantic import SecretStr

FLOWS = ["spin-iteration", "spin-campaign"]
MAX_RUNS = 4  # the first and three more
HEARTBEAT = "prefect.flow-run.heartbeat"
_CANCELLING = "prefect.flow-run.Cancelling"
_ENDS = {_CANCELLING} | {
    f"prefect.flow-run.{state}"
    for state in ("Completed", "NothingToDo", "Failed", "TimedOut", "Crashed", "Cancelled", "Paused", "Suspended", "AwaitingRetry")
}
_OURS = ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS})
_DEPLOYED = ResourceSpecification({"prefect.resource.role": "deployment"})
_BODY = """{{ flow.name }} · {{ flow_run.name }} is {{ flow_run.state.name }} after run {{ flow_run.run_count }}.
{{ flow_run.state.message }}
{{ flow_run|ui_url }}"""


def zombies(silence_s: float) -> Automation:
    """Runs that sent heartbeats and fell silent become Crashed."""
    return Automation(
        name="spinflow: a run without heartbeat has crashed",
        description="Worker and flow died together, so nobody else can say it.",
        trigger=_silence(HEARTBEAT, {HEARTBEAT, *_ENDS}, silence_s),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {silence_s:g} s: worker and flow are gone")],
    )


def abandoned_cancellations(silence_s: float) -> Automation:
    """A cancellation that no worker carried out ends by itself: where worker and flow are dead, nobody else would."""
    return Automation(
        name="spinflow: a cancellation that nobody carries out is done",
        description="The worker that should end the run is gone.",
        trigger=_silence(_CANCELLING, _ENDS - {_CANCELLING}, silence_s),
        actions=[ChangeFlowRunState(state=StateType.CANCELLED, message="cancelled; its worker was gone", force=True)],
    )


def restarts() -> Automation:
    """Crashed runs of a deployment are scheduled again, up to MAX_RUNS runs in all."""
    return Automation(
        name="spinflow: a crashed run starts again",
        description=f"At most {MAX_RUNS} runs; what is finished is found in the store and not redone.",
        trigger=_reactive({"prefect.flow-run.Crashed"}, [str(n) for n in range(1, MAX_RUNS)], deployed=True),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="crashed; starts again where it was", force=True)
        ],
    )


def alarms(block: NotificationBlock, kind: str) -> list[Automation]:
    """Notifications of runs that failed, and of runs that crashed as often as is allowed."""
    document = block._block_document_id
    assert document is not None
    action = SendNotification(block_document_id=document, subject="spinflow run {{ flow_run.state.name }}", body=_BODY)
    failed = _reactive({"prefect.flow-run.Failed", "prefect.flow-run.TimedOut"})
    given_up = _reactive({"prefect.flow-run.Crashed"}, [str(MAX_RUNS)])
    return [
        Automation(name=f"spinflow: tell {kind} of failed runs", trigger=failed, actions=[action]),
        Automation(name=f"spinflow: tell {kind} of runs that keep crashing", trigger=given_up, actions=[action]),
    ]


def _silence(after: str, expected: set[str], within_s: float) -> EventTrigger:
    """Fires for a run when none of the expected events follows in time."""
    return EventTrigger(
        after={after},
        expect=expected,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=_OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )


def _reactive(events: set[str], run_counts: list[str] | None = None, *, deployed: bool = False) -> EventTrigger:
    match: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
    if run_counts:
        match["prefect.run-count"] = run_counts
    return EventTrigger(
        expect=events,
        match=ResourceSpecification(match),
        match_related=[_OURS, _DEPLOYED] if deployed else _OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def notification_blocks() -> Iterator[tuple[str, NotificationBlock]]:
    """A block for each way of being told that the environment configures; addresses and keys are stored encrypted by the server."""
    if url := os.environ.get("SPINFLOW_NOTIFY_WEBHOOK"):
        message = {"subject": "{{subject}}", "body": "{{body}}"}
        # the operator's own URL may well be inside the network
        yield "webhook", CustomWebhookNotificationBlock(name="spinflow", url=url, json_data=message, allow_private_urls=True)
    if url := os.environ.get("SPINFLOW_NOTIFY_SLACK"):
        yield "slack", SlackWebhook(url=SecretStr(url))
    if to := os.environ.get("SPINFLOW_NOTIFY_EMAIL"):
        key, sender = SecretStr(os.environ["SENDGRID_API_KEY"]), os.environ["SPINFLOW_NOTIFY_EMAIL_FROM"]
        yield "email", SendgridEmail(api_key=key, sender_email=sender, to_emails=[address.strip() for address in to.split(",")])


def apply(silence_s: float) -> list[str]:
    """Creates the automations, or brings those of the same name up to date. Returns their names."""
    wanted = [zombies(silence_s), abandoned_cancellations(silence_s), restarts()]
    for kind, block in notification_blocks():
        block.save(f"spinflow-{kind}", overwrite=True)
        wanted += alarms(block, kind)
    with get_client(sync_client=True) as client:
        for automation in wanted:
            core = AutomationCore(**automation.model_dump(exclude={"id", "owner_resource"}))
            found = client.read_automations_by_name(automation.name)
            if found:
                core.enabled = found[0].enabled  # a person may have switched it off
                client.update_automation(found[0].id, core)
            else:
                client.create_automation(core)
    return [automation.name for automation in wanted]
