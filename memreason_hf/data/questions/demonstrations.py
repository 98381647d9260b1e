"""Demonstrations: solved questions to put before a question, the same ones for the same question and seed."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from datasets import Dataset

from memreason_hf.checks import check_callable, check_int, check_row, check_sequence, check_type, shortened
from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.steps import Step


# Words of any length and language. Frequent words weigh little in BM25, so none are left out.
_WORDS = r"(?u)\b\w+\b"


class Demonstrations:
    """
    Draws demonstrations from the items of a data set that have steps. A question is never its own demonstration.

    Args:
        dataset: a split of annotated questions, usually the training split.
        num_demonstrations: number of demonstrations for each question.
        seed: decides, together with the question, which ones are drawn.

    Raises:
        ValueError: the number is negative, or not below the number of distinct questions with steps.

    Example:

    ```python
    demonstrations = Demonstrations(dataset["train"], num_demonstrations=4)
    prompt = encode_prompt(tokenizer, question, demonstrations(question))
    ```
    """

    def __init__(self, dataset: Dataset, num_demonstrations: int, *, seed: int = 0):
        check_int("seed", seed)
        self.num_demonstrations = num_demonstrations
        self.seed = seed
        self.pool = _pool(dataset, num_demonstrations)

    def __call__(self, question: str) -> list[tuple[str, list[Step]]]:
        """Pairs of a question and its solution, the answer last; none of them is `question`."""
        check_type("question", question, str, "a text")
        if not self.num_demonstrations:
            return []
        generator = random.Random(f"{self.seed}:{question}")
        drawn = generator.sample(self.pool, self.num_demonstrations + 1)
        return [pair for pair in drawn if _key(pair[0]) != _key(question)][: self.num_demonstrations]


class SimilarDemonstrations:
    """
    Takes the solved questions that are most similar to a question, the most similar one last, next to the question. A
    question is never its own demonstration. Equally similar ones are taken in the order of the data set.

    Args:
        dataset: a split of annotated questions, usually the training split.
        num_demonstrations: number of demonstrations for each question.
        embed: a function from a list of questions to an array `(questions, width)`, whose cosine is the similarity.
            Default: BM25 over the words of the questions, by the library bm25s.

    Raises:
        ValueError: as for `Demonstrations`, or an embedding of another shape.
        ImportError: bm25s is not installed.

    Example:

    ```python
    demonstrations = SimilarDemonstrations(dataset["train"], num_demonstrations=4)
    demonstrations = SimilarDemonstrations(dataset["train"], 4, embed=sentence_embedder("all-MiniLM-L6-v2"))
    ```
    """

    def __init__(
        self,
        dataset: Dataset,
        num_demonstrations: int,
        *,
        embed: Callable[[list[str]], np.ndarray] | None = None,
    ):
        if embed is not None:
            check_callable("embed", embed, "a function from questions to vectors")
        self.num_demonstrations = num_demonstrations
        self.pool = _pool(dataset, num_demonstrations)
        self._score = None
        if self.pool:
            questions = [question for question, _ in self.pool]
            self._score = _bm25_scores(questions) if embed is None else _cosines(embed, questions)

    def __call__(self, question: str) -> list[tuple[str, list[Step]]]:
        """Pairs of a question and its solution, the answer last; none of them is `question`."""
        check_type("question", question, str, "a text")
        if not self.num_demonstrations:
            return []
        # A stable sort, so that equal scores keep the order of the data set.
        order = np.argsort(-self._score(question), kind="stable")
        chosen = [self.pool[index] for index in order if _key(self.pool[index][0]) != _key(question)]
        return chosen[: self.num_demonstrations][::-1]


class GivenDemonstrations:
    """
    Shows the same solved questions before every question, in their order. One that is the question itself is replaced
    by the next of the rows.

    Args:
        rows: the solved questions, with `question`, `steps` and `answer`.
        num_demonstrations: number of demonstrations for each question. Default: all rows. With one row more than
            this number, a question that is among the rows has as many demonstrations as the others.

    Raises:
        ValueError: there are fewer rows, or a row has no steps.
    """

    def __init__(self, rows: Iterable[Mapping], num_demonstrations: int | None = None):
        check_sequence("rows", rows, "a list of solved questions")
        self.pool = []
        for index, row in enumerate(rows):
            check_row(f"rows[{index}]", row, ("question", "steps", "answer"))
            if not row["steps"]:
                raise ValueError(f"Demonstration {index}, {shortened(row['question'])}, has no steps. Add them.")
            self.pool.append((row["question"], reference_solution(row)))
        self.num_demonstrations = len(self.pool) if num_demonstrations is None else num_demonstrations
        check_int("num_demonstrations", self.num_demonstrations)
        if not 0 <= self.num_demonstrations <= len(self.pool):
            raise ValueError(
                f"num_demonstrations={self.num_demonstrations} must be between 0 and {len(self.pool)}, the number of "
                "given demonstrations."
            )

    def __call__(self, question: str) -> list[tuple[str, list[Step]]]:
        """Pairs of a question and its solution, the answer last; none of them is `question`."""
        check_type("question", question, str, "a text")
        shown = [pair for pair in self.pool if _key(pair[0]) != _key(question)][: self.num_demonstrations]
        if len(shown) < self.num_demonstrations:
            raise ValueError(
                f"The question {shortened(question)} is one of the {len(self.pool)} given demonstrations, so only "
                f"{len(shown)} of num_demonstrations={self.num_demonstrations} are left. Give one more row."
            )
        return shown


def sentence_embedder(
    model: str, *, device: str | None = None, batch_size: int = 64, trust_remote_code: bool = False
) -> Callable[[list[str]], np.ndarray]:
    """
    A function from texts to vectors by a model of the library sentence-transformers, for `SimilarDemonstrations`.

    Args:
        model: a name on the Hub, or a folder.
        device: as for torch. Default: an accelerator if there is one.
        batch_size: texts that are encoded together.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ImportError: the library is not installed.
        ValueError: the model cannot be loaded.
    """
    check_type("embedding_model", model, str, "a name on the Hub or a folder")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError(
            f"embedding_model={model!r} needs sentence-transformers: pip install 'memreason-hf[retrieval]'."
        ) from None
    try:
        encoder = SentenceTransformer(model, device=device, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"embedding_model={model!r} cannot be loaded: {str(error).splitlines()[0]}") from error

    def embed(texts: list[str]) -> np.ndarray:
        return encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)

    return embed


def _pool(dataset, num_demonstrations):
    """Each question once. Otherwise a repeated question could be shown twice, or leave one demonstration too few."""
    check_sequence("dataset", dataset, "a split of annotated questions")
    check_int("num_demonstrations", num_demonstrations)
    for row in dataset:
        check_row("row", row, ("question", "steps", "answer"))
        break
    rows = {_key(row["question"]): row for row in dataset if row["steps"]} if num_demonstrations else {}
    if num_demonstrations < 0 or num_demonstrations > max(len(rows) - 1, 0):
        raise ValueError(
            f"num_demonstrations={num_demonstrations} must be between 0 and {max(len(rows) - 1, 0)}, one less "
            "than the number of questions with steps."
        )
    return [(row["question"], reference_solution(row)) for row in rows.values()]


def _key(question):
    """White space and case do not make another question."""
    return "".join(question.split()).casefold()


def _bm25_scores(questions: Sequence[str]) -> Callable[[str], np.ndarray]:
    try:
        import bm25s
    except ImportError:
        raise ImportError(
            "demonstrations='bm25' needs bm25s, which is not installed: pip install 'memreason-hf[retrieval]'."
        ) from None

    def words(texts):
        arguments = {"token_pattern": _WORDS, "stopwords": [], "show_progress": False}
        return bm25s.tokenize(texts, return_ids=False, **arguments)

    retriever = bm25s.BM25()
    retriever.index(words(list(questions)), show_progress=False)

    def score(question):
        known = [word for word in words([question])[0] if word in retriever.vocab_dict]
        return retriever.get_scores(known) if known else np.zeros(len(questions))

    return score


def _cosines(embed: Callable, questions: Sequence[str]) -> Callable[[str], np.ndarray]:
    vectors = _unit_rows(embed(list(questions)), len(questions))

    def score(question):
        return vectors @ _unit_rows(embed([question]), 1)[0]

    return score


def _unit_rows(vectors, count):
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(f"embed must give an array of {count} rows, one for each question; got {vectors.shape}.")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
