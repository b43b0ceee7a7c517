"""The simulator: the real scheduler over an executor in virtual time, jumping from event to event."""
