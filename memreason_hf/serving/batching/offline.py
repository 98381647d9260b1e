"""All texts of a list of prompts, with the signature of the library's `generate_batch`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from .requests import REQUEST_FIELDS, GenerationRequest, RequestOutput


class OfflineMixin:
    """The methods of a batcher that run a whole list of prompts."""

    def generate_batch(
        self,
        inputs: Sequence[Sequence[int] | GenerationRequest],
        generation_config=None,
        *,
        progress_bar: bool = True,
        **kwargs,
    ) -> dict[str, RequestOutput]:
        """
        Generates a text for each prompt.

        Args:
            inputs (`Sequence`): Prompts as lists of token ids, or `GenerationRequest` objects.
            generation_config (`GenerationConfig`, *optional*): For all prompts that are lists.
            progress_bar (`bool`, defaults to `True`): Whether to show the requests that are done.
            kwargs: Fields of `GenerationRequest` for all prompts that are lists.

        Returns:
            `dict` from request id to `RequestOutput`, in the order of `inputs`.

        Example:

        ```python
        >>> outputs = batcher.generate_batch([[5, 8], [3]], max_new_tokens=4, progress_bar=False)  # doctest: +SKIP
        >>> [output.generated_tokens for output in outputs.values()]  # doctest: +SKIP
        ```
        """
        requests = self._requests(inputs, generation_config, kwargs)
        results = {request.request_id: None for request in requests}
        with tqdm(total=len(requests), disable=not progress_bar, unit="request") as bar:
            for output in self._run(requests):
                results[output.request_id] = output
                bar.update()
        return results

    def generate_iter(
        self, inputs: Sequence[Sequence[int] | GenerationRequest], generation_config=None, **kwargs
    ) -> Iterator[RequestOutput]:
        """Like `generate_batch`, but gives each `RequestOutput` as soon as it is complete."""
        yield from self._run(self._requests(inputs, generation_config, kwargs))

    def _requests(self, inputs, generation_config, kwargs):
        unknown = sorted(kwargs.keys() - set(REQUEST_FIELDS))
        if unknown:
            raise TypeError(f"{unknown[0]}={kwargs[unknown[0]]!r}: generate_batch has no such argument.")
        requests = []
        for index, prompt in enumerate(inputs):
            if not isinstance(prompt, GenerationRequest):
                prompt = GenerationRequest(prompt, generation_config=generation_config, **kwargs)
            requests.append(prompt if prompt.request_id else replace(prompt, request_id=f"req_{index}"))
        return requests

    def _run(self, requests):
        if self.has_work:
            raise ValueError(
                "The batcher holds other requests, whose outputs would be lost: run them to their end with step first."
            )
        results = {}
        try:
            # All requests are checked before the first runs.
            for request in requests:
                name = self._enter(request)
                results[name] = RequestOutput(name, list(self._known[name].tokens))
            while self.has_work:
                for output in self.step():
                    result = results[output.request_id]
                    result.add(output)
                    if result.is_finished():
                        yield result
        finally:
            for request in requests:
                self.cancel(request.request_id)
            self._notices.clear()


__all__ = ["OfflineMixin"]
