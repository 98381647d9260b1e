"""
Rewards for reinforcement learning on questions: a right answer, and well-formed steps.

    from trl import GRPOConfig, GRPOTrainer

    dataset = prompt_rows(load_memory_reason("data/strategy_qa")["train"], tokenizer)
    rewards = [AnswerReward(tokenizer), StepReward(tokenizer)]
    GRPOTrainer(model, rewards, GRPOConfig(...), train_dataset=dataset, processing_class=tokenizer).train()

The rewards are callables in the form of TRL: texts and the other columns of the data set in, one number for each
completion out. They read the ids of the completions, because the texts that TRL passes have lost the special tokens.
"""

from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_has, check_number, check_row, check_sequence, check_type
from memreason_hf.data.questions.options import options_by_label
from memreason_hf.data.questions.prompts import Prompter, lone_prompter, read_prompt_format
from memreason_hf.evaluation.solutions.answers import judge_answer
from memreason_hf.messages import first_few
from memreason_hf.steps import ANSWER_MARKER, NO_KIND, Solution, StepScheme
from memreason_hf.steps.tokenization import begin_ids, decode_solution, has_visible_marks, read_scheme


ANSWER = "answer"
# What `step_faults` can find, in this order.
FAULTS = ("cut off", "unmarked step", "empty step", "missing kind", "no single answer at the end")
# Columns that tell `judge_answer` how to read an answer; a data set may lack them.
_READING = ("answer_type", "accepted_answers")


def prompt_rows(rows: Iterable[Mapping], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """
    Rows of questions with the column `prompt`, as TRL's trainers for reinforcement learning take them.

    Args:
        rows: rows with `question` and any other columns, which are kept for the rewards.
        tokenizer: the extended tokenizer, whose scheme writes the prompts.

    Returns:
        A data set with all columns and `prompt`: the question in the prompt that was recorded in the tokenizer (a chat
        template, for example), then the prefix tokens of the first step.

    Raises:
        ValueError: there are no rows, the recorded prompt has demonstrations, or TRL would not encode the prompt of a
            row as in evaluation, for example because the question holds a special token; the message names the first
            rows.

    Example:

    ```python
    >>> from memreason_hf import StepScheme, extend_tokenizer

    >>> _ = extend_tokenizer(tokenizer, StepScheme(num_prefix_tokens=1, num_step_tokens=1))
    >>> rows = [{"question": "Is it?", "options": [], "answer": "4"}]
    >>> prompt_rows(rows, tokenizer)[0]["prompt"]
    'Question: Is it?\\n<prefix>'
    ```
    """
    scheme, format = read_scheme(tokenizer), read_prompt_format(tokenizer)
    if format.num_demonstrations:
        raise ValueError(
            f"The tokenizer's prompt has num_demonstrations={format.num_demonstrations}, which these rows do not "
            "hold. Train without demonstrations."
        )
    prompter, written, bad = Prompter(tokenizer, format), [], []
    for index, row in enumerate(rows):
        check_row(f"rows[{index}]", row, ("question",))
        question = row["question"]
        ids = prompter.prompt_ids(question)
        prompt = scheme.prompt(question) if format.is_default else _without_begin(tokenizer, prompter.text(question))
        written.append({**row, "prompt": prompt})
        if tokenizer(prompt)["input_ids"] != ids:
            bad.append(f"row {index} ({question[:60]!r})")
    if not written:
        raise ValueError("There are no rows to write prompts for. Check the split and the filters.")
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(written)} questions would be encoded as another text than in evaluation: "
            f"{first_few(bad, 3)}. They hold special tokens of the tokenizer, or it adds tokens at the end of a text. "
            "Leave these rows out."
        )
    return Dataset.from_list(written)


def _without_begin(tokenizer, text):
    """A prompt without the BOS token that the tokenizer adds itself."""
    return text.removeprefix(tokenizer.bos_token) if begin_ids(tokenizer) and tokenizer.bos_token else text


def step_faults(solution: Solution, required: Sequence[str] = ("memory", "reason")) -> list[str]:
    """
    What keeps the steps of a parsed text from being well-formed, as names out of `FAULTS`; empty if nothing does.

    Args:
        solution: from `StepScheme.parse`.
        required: kinds of which there must be a step.

    Example:

        >>> from memreason_hf import StepScheme
        >>> text = "<memory> Air scatters blue light.\\n<answer> The answer is: True\\n"
        >>> step_faults(StepScheme(0, 1).parse(text))
        ['missing kind']
    """
    kinds = [step.kind for step in solution]
    ends = kinds.count(ANSWER) == 1 and kinds[-1] == ANSWER
    ends = ends and solution[-1].text.strip().casefold().startswith(ANSWER_MARKER.casefold())
    found = (
        solution.truncated,
        NO_KIND in kinds,
        any(not step.text.strip() for step in solution),
        not set(required) <= set(kinds),
        not ends,
    )
    return [name for name, is_found in zip(FAULTS, found) if is_found]


class _SolutionReward:
    """What the rewards share: the texts of completions with their marks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        check_has("tokenizer", tokenizer, "convert_tokens_to_ids", "an extended tokenizer")
        self.tokenizer, self.scheme = tokenizer, read_scheme(tokenizer)
        # In a chat the end of the turn, which is not always the end of the text.
        self._ends = {tokenizer.eos_token_id, lone_prompter(tokenizer).end_id}

    def _solutions(self, completions, completion_ids) -> list[str]:
        """The text of each completion with its marks. The prefix tokens before the first step are in the prompt."""
        if completion_ids is not None:
            return [decode_solution(self.tokenizer, self._until_end(ids)) for ids in completion_ids]
        check_sequence("completions", completions, "a list of texts or of conversations")
        if self.scheme.tokens and not has_visible_marks(self.tokenizer):
            raise ValueError(
                "completion_ids is not given, and this tokenizer removes step tokens from texts. Pass the ids of the "
                "completions, as TRL does, or extend the tokenizer with visible_marks=True."
            )
        return [entry if isinstance(entry, str) else entry[-1]["content"] for entry in completions]

    def _until_end(self, ids):
        ids = [int(token_id) for token_id in ids]
        return ids[: next((place for place, token_id in enumerate(ids) if token_id in self._ends), len(ids))]


class AnswerReward(_SolutionReward):
    """
    A reward for a right answer, by the rule of `judge_answer`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The extended tokenizer.
        correct, wrong, invalid (`float`, *optional*, defaults to 1, 0 and 0):
            The rewards of a right answer, of a wrong one, and of a text without a valid answer.
        judge_arguments: For `judge_answer`, for example `match_option_text=True`.

    Example:

    ```python
    >>> from memreason_hf import StepScheme, extend_tokenizer

    >>> _ = extend_tokenizer(tokenizer, StepScheme(num_prefix_tokens=1, num_step_tokens=1))
    >>> reward = AnswerReward(tokenizer)
    >>> ids = tokenizer("<answer> The answer is: 4")["input_ids"]
    >>> reward(completions=[""], completion_ids=[ids], answer=["4"], options=[[]])
    [1.0]
    ```
    """

    __name__ = "answer_reward"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        correct: float = 1.0,
        wrong: float = 0.0,
        invalid: float = 0.0,
        **judge_arguments,
    ):
        super().__init__(tokenizer)
        for name, value in (("correct", correct), ("wrong", wrong), ("invalid", invalid)):
            check_number(name, value)
        if correct <= max(wrong, invalid):
            raise ValueError(f"correct={correct} must be above wrong={wrong} and invalid={invalid}.")
        self.correct, self.wrong, self.invalid = float(correct), float(wrong), float(invalid)
        self.judge_arguments = judge_arguments

    def __call__(self, completions=None, *, completion_ids=None, **columns) -> list[float]:
        """
        The rewards of completions.

        Args:
            completions (`list[str]`): The texts, or conversations whose last message counts; read only if there are
                no ids.
            completion_ids (`list[list[int]]`, *optional*): Their ids.
            columns: The other columns of the data set, one entry for each completion: `answer`, `options`, and where
                the data set has them `answer_type` and `accepted_answers`. Others are ignored.

        Raises:
            ValueError: the data set has no answers, or a row's answer is not an option.
        """
        texts = self._solutions(completions, completion_ids)
        if columns.get("answer") is None:
            raise ValueError(
                "The column 'answer' is missing: the reward compares the completions with it. Keep the column in the "
                "data set (`prompt_rows` does), with `options` where the answers are letters or True and False."
            )
        answers = columns["answer"]
        options = columns.get("options") or [[]] * len(answers)
        reading = [name for name in _READING if name in columns]
        return [
            self._reward(text, answer, _options(entry), {name: columns[name][i] for name in reading})
            for i, (text, answer, entry) in enumerate(zip(texts, answers, options, strict=True))
        ]

    def _reward(self, text, answer, options, reading):
        verdict = judge_answer(text, answer, options, **reading, **self.judge_arguments)
        if not verdict.is_valid:
            return self.invalid
        return self.correct if verdict.is_correct else self.wrong


class StepReward(_SolutionReward):
    """
    A reward for well-formed steps: the share of the conditions behind `FAULTS` that hold, or all of them at once.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The extended tokenizer.
        required (`Sequence[str]`, *optional*):
            Kinds of which a solution must have a step. Default: all kinds of the scheme.
        graded (`bool`, *optional*, defaults to `True`): Whether a solution with some faults gets a part of the reward.

    Raises:
        ValueError: the texts of the tokenizer's scheme show no kinds.
    """

    __name__ = "step_reward"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        required: Sequence[str] | None = None,
        graded: bool = True,
    ):
        super().__init__(tokenizer)
        required = self.scheme.kinds if required is None else required
        check_sequence("required", required, "a list of kinds")
        check_type("graded", graded, bool, "True or False")
        _check_shows(self.scheme, required)
        self.required, self.graded = tuple(required), graded

    def __call__(self, completions=None, *, completion_ids=None, **columns) -> list[float]:
        """The rewards of completions, between 0 and 1; the arguments are those of `AnswerReward`."""
        texts = self._solutions(completions, completion_ids)
        return [self._reward(step_faults(self.scheme.parse(text), self.required)) for text in texts]

    def _reward(self, faults):
        return 1 - len(faults) / len(FAULTS) if self.graded else float(not faults)


def _check_shows(scheme: StepScheme, kinds):
    if not scheme.has_kinds:
        raise ValueError(f"{scheme} shows no kinds of steps, so they cannot be rewarded. Use AnswerReward alone.")
    if scheme.layout == "plan_only":
        raise ValueError(f"{scheme} writes no texts of steps, so all of them are empty. Use AnswerReward alone.")
    for kind in kinds:
        # Raises for a kind that the scheme does not know.
        scheme.kind_tokens(kind)


def _options(entry) -> dict[str, str]:
    return dict(entry) if isinstance(entry, Mapping) else options_by_label(entry or [])
