"""The next token of each row: greedy or drawn, after the logits processors that `generate` applies."""

import math

import torch


class TokenChooser:
    """Chooses the next tokens of rows from their logits, with random numbers of each row's own."""

    def choose(self, rows: list, logits: torch.Tensor) -> list[tuple[int | None, dict | None, str | None]]:
        """
        Returns for each row the token, the log-probabilities if the request asks for them, and an error.

        Args:
            rows (`list` of `Row`): The rows.
            logits (`torch.Tensor` of shape `(rows, vocab)`): The logits of the model.
        """
        scores = logits.float()
        # The largest of values with a NaN is NaN.
        highest, tokens = scores.max(-1)
        highest, tokens = highest.tolist(), tokens.tolist()
        chosen: list[tuple[int | None, dict | None, str | None]] = []
        for index, row in enumerate(rows):
            if not highest[index] < math.inf:
                chosen.append((None, None, _NOT_FINITE))
                continue
            token, error = tokens[index], None
            if row.processors or row.generator is not None:
                try:
                    token = self._process(row, scores[index : index + 1])
                except Exception as problem:  # a processor of the request must not end the others
                    token, error = None, f"{type(problem).__name__}: {problem}"
            logprobs = None
            if row.top_logprobs is not None and token is not None:
                logprobs = _log_probabilities(scores[index], token, row.top_logprobs)
            chosen.append((token, logprobs, error))
        return chosen

    @staticmethod
    def _process(row, scores):
        # Processors may change their scores in place.
        scores = row.processors(row.ids(scores.device), scores.clone())
        if row.generator is None:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=row.generator))


_NOT_FINITE = (
    "The logits are NaN or infinite, so no token can be chosen. Check the weights with torch.isfinite, or load them "
    "with dtype=torch.float32 if they overflow in half precision."
)


def _log_probabilities(scores, token, count):
    log_probs = scores.log_softmax(-1)
    found = {token: float(log_probs[token])}
    if count:
        values, ids = log_probs.topk(min(count, len(log_probs)))
        found |= dict(zip(ids.tolist(), values.tolist()))
    return found


__all__ = ["TokenChooser"]
