"""How many hops a model follows that was trained on few, and what deeper recurrence costs it."""
