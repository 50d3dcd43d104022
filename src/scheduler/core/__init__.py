"""What a shard decides, and nothing else: pure functions of a state view and a command.

Nothing here reads a clock, draws a random number, or touches a network, a disk or an event loop.
The time, the ids and the choice of an executor arrive inside the command, chosen by the leader
before it proposed. So every replica that applies the same log has the same state, byte for byte.

    model       what is stored
    commands    what may be done to it, and what came of it
    view        how the state is read and written while a command is applied
    machine     the table of contents: command -> handler
    jobs · schedules · executions    the handlers
    recurrence  when a schedule fires
    ids         how ids are made and spelled
"""
