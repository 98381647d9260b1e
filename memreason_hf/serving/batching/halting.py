"""The halting criteria of rows that stand at different recurrences."""

from collections.abc import Callable

import torch


class RowCriteria:
    """
    Asks the criteria of all rows at once, whatever the recurrence of each.

    A criterion sees what it read at the previous recurrence and what it noted itself. Rows whose criterion is the
    same and has the same entries to see form one group, which is one call. So rows at their first recurrences form
    groups of their own, and all others one.

    Attributes:
        previous (`dict` from `str` to `torch.Tensor` of shape `(rows, width)`): By what is read, the last signal.
        notes (`dict` from `str` to `torch.Tensor` of shape `(rows, …)`): What criteria keep.
    """

    def __init__(self):
        self.previous: dict[str, torch.Tensor] = {}
        self.notes: dict[str, torch.Tensor] = {}

    def keep(self, rows: torch.LongTensor) -> None:
        """Keeps only these rows."""
        for values in (self.previous, self.notes):
            for name in values:
                values[name] = values[name][rows]

    def add(self, count: int) -> None:
        """Makes room for `count` further rows."""
        for values in (self.previous, self.notes):
            for name, old in values.items():
                values[name] = torch.cat((old, old.new_zeros((count, *old.shape[1:]))))

    def ask(self, rows: list, read: Callable) -> list[bool]:
        """
        Whether the criterion of each row would halt it now.

        Args:
            rows (`list` of `Row`): All rows. Those whose token has a count have no criterion to ask.
            read (`Callable`): Maps what is read (`"log_probs"`, …) and a list of rows (indices) to signals of shape
                `(rows, width)`.
        """
        by_signal: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            if row.count is None:
                by_signal.setdefault(row.depth.criterion.reads, []).append(index)
        opinions = [False] * len(rows)
        verdicts, asked = [], []
        for reads, indices in by_signal.items():
            signal = read(reads, indices)
            for group, verdict in self._ask_groups(rows, indices, signal, reads, len(rows)):
                asked += group
                verdicts.append(verdict)
        if verdicts:
            for index, verdict in zip(asked, torch.cat(verdicts).tolist()):
                opinions[index] = verdict
        return opinions

    def _ask_groups(self, rows, indices, signal, reads, count):
        groups: dict[tuple, tuple[list[int], list[int]]] = {}
        for place, index in enumerate(indices):
            row = rows[index]
            key = (row.criterion_key, row.recurrence > 1, row.notes)
            places, members = groups.setdefault(key, ([], []))
            places.append(place)
            members.append(index)
        before = self.previous.get(reads)
        for (_, seen, names), (places, members) in groups.items():
            criterion = rows[members[0]].depth.criterion
            every = len(members) == count
            where = None if every else torch.tensor(members, device=signal.device)
            here = signal if len(places) == len(indices) else signal[torch.tensor(places, device=signal.device)]
            previous = _at(before, where) if seen and criterion.compares else None
            notes = {name: _at(self.notes[name], where) for name in names}
            verdict = criterion(here, previous, notes)
            for name, value in notes.items():
                self._store(self.notes, name, where, value, count)
            if frozenset(notes) != names:
                for index in members:
                    rows[index].notes = frozenset(notes)
            if verdict is not None:
                yield members, verdict
        if any(rows[index].depth.criterion.compares for index in indices):
            where = None if len(indices) == count else torch.tensor(indices, device=signal.device)
            self._store(self.previous, reads, where, signal, count)

    @staticmethod
    def _store(values, name, where, new, count):
        if where is None:
            values[name] = new
            return
        if name not in values:
            values[name] = new.new_zeros((count, *new.shape[1:]))
        values[name].index_copy_(0, where, new)


def _at(values, where):
    return values if where is None else values[where]


__all__ = ["RowCriteria"]
