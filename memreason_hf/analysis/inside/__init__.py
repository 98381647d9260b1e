"""Looking inside a loop: what is readable after each recurrence, how the state moves, and what an answer hangs on."""
