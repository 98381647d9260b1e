"""Which visitor is being answered, so that a visitor can stop an answer and leave."""

import threading


class Sessions:
    """
    The answers that run or wait, by the session of their visitor.

    Example:
        >>> sessions = Sessions()
        >>> stop = sessions.begin("visitor")
        >>> sessions.stop("visitor"), stop.is_set()
        (True, True)
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._running: dict[str, set[threading.Event]] = {}
        self._stopped: set[str] = set()

    def press(self, session: str) -> None:
        """A visitor asks for an answer: an earlier stop is forgotten."""
        with self._lock:
            self._stopped.discard(session)

    def begin(self, session: str) -> threading.Event:
        """The event that stops an answer which begins now. It is set already if the visitor stopped while waiting."""
        event = threading.Event()
        with self._lock:
            self._running.setdefault(session, set()).add(event)
            if session in self._stopped:
                self._stopped.discard(session)
                event.set()
        return event

    def end(self, session: str, event: threading.Event) -> None:
        """An answer has ended."""
        with self._lock:
            events = self._running.get(session, set())
            events.discard(event)
            if not events:
                self._running.pop(session, None)

    def stop(self, session: str) -> bool:
        """Stops what runs for a visitor, or else what waits; returns whether something ran."""
        with self._lock:
            events = self._running.get(session, set())
            for event in events:
                event.set()
            if not events:
                self._stopped.add(session)
            return bool(events)

    def leave(self, session: str) -> None:
        """The visitor has closed the page."""
        self.stop(session)
        with self._lock:
            self._stopped.discard(session)
