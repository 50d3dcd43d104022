"""The table of contents of what a shard does: command -> handler."""

from __future__ import annotations

from . import calendars, commands, customers, executions, fires, history, jobs, schedules, zones
from .commands import AnyCommand, Outcome, Refused
from .model import Execution
from .view import View


def apply(view: View, entry: list[AnyCommand], now_ms: int) -> list[Outcome]:
    """Do an entry's commands, one by one, as of one time, and tell what came of each.

    Pure but for the view. A refused command has written nothing: handlers check, then write.
    """
    outcomes: list[Outcome] = []
    for command in entry:
        try:
            outcomes.append(_apply(view, command, now_ms))
        except Refused as refusal:
            outcomes.append(refusal)
    return outcomes


def _apply(view: View, command: AnyCommand, now_ms: int) -> Outcome:
    match command:
        case commands.Fire():
            return fires.fire(view, command, now_ms)
        case commands.EndAttempts():
            return _followed(view, executions.end(view, command, now_ms), now_ms)
        case commands.CreateSchedules():
            return schedules.create(view, command, now_ms)
        case commands.ExecuteJobs():
            return executions.execute(view, command, now_ms)
        case commands.CreateJobs():
            return jobs.create(view, command, now_ms)
        case commands.UpdateJob():
            return jobs.update(view, command, now_ms)
        case commands.DeleteJob():
            return jobs.delete(view, command)
        case commands.UpdateSchedule():
            return schedules.update(view, command, now_ms)
        case commands.DeleteSchedules():
            return schedules.delete(view, command, now_ms)
        case commands.PauseSchedule():
            return schedules.pause(view, command, now_ms)
        case commands.ResumeSchedule():
            return schedules.resume(view, command, now_ms)
        case commands.Assign():
            return executions.assign(view, command, now_ms)
        case commands.Cancel():
            found, stopped = executions.cancel(view, command, now_ms)
            _followed(view, stopped, now_ms)
            return found
        case commands.TriggerSchedule():
            return fires.trigger(view, command, now_ms)
        case commands.BackfillSchedule():
            return fires.backfill(view, command, now_ms)
        case commands.DropHistory():
            return history.drop(view, command)
        case commands.CreateApiKey():
            return customers.create_key(view, command, now_ms)
        case commands.UpdateCustomer():
            return customers.update(view, command, now_ms)
        case commands.PurgeExecutions():
            return history.purge(view, command, now_ms)
        case commands.RevokeApiKey():
            return customers.revoke_key(view, command, now_ms)
        case commands.CreateCalendar():
            return calendars.create(view, command, now_ms)
        case commands.UpdateCalendar():
            return calendars.update(view, command, now_ms)
        case commands.DeleteCalendar():
            return calendars.delete(view, command)
        case commands.PinSchedules():
            return calendars.pin(view, command, now_ms)
        case commands.LearnZones():
            return zones.learn(view, command)
        case commands.PutRegistryCredential():
            return customers.put_credential(view, command, now_ms)
        case commands.DeleteRegistryCredential():
            return customers.delete_credential(view, command, now_ms)
        case commands.PinZones():
            return zones.pin(view, now_ms)


def _followed(view: View, changed: list[Execution], now_ms: int) -> list[Execution]:
    fires.follow(view, changed, now_ms)
    return changed
