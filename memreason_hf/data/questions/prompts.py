"""
The prompt of a question: as in the study, in a template of the user's, or in the chat template of the tokenizer.

    format = PromptFormat(chat_template=True, system="You answer in short steps.")
    prompter = Prompter(tokenizer, format)
    input_ids = prompter.prompt_ids("Is the sky blue?")

A format is saved with the tokenizer of a fine-tuned model (`record_prompt_format`), so that the model gets the same
prompt later.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from memreason_hf.checks import check_callable, check_choice, check_has, check_int, check_type, shortened
from memreason_hf.data.questions.prompt_texts import (
    COMPLETION,
    INSTRUCTION,
    QUESTION,
    Shield,
    default_instruction,
    fill_template,
    template_places,
)
from memreason_hf.messages import first_line
from memreason_hf.steps import ANSWER_MARKER, QUESTION_MARKER, StepScheme, answer_step
from memreason_hf.steps.scheme import as_step
from memreason_hf.steps.tokenization import SCHEME_KEY, begin_ids, encode_plain, encode_prompt, read_scheme


logger = logging.get_logger(__name__)

# The key of the format among a tokenizer's init arguments, which are saved with it.
FORMAT_KEY = "prompt_format"
STYLES = ("steps", "chain_of_thought", "direct")
SELECTIONS = ("random", "bm25", "embedding", "given")
# The usual beginning of a chain of thought where no demonstration shows one.
STEP_BY_STEP = "Let's think step by step."

Demonstrated = Sequence[tuple[str, Sequence]]


@dataclass(frozen=True)
class PromptFormat:
    """
    How a question is put to a model.

    The default is the prompt of the study: `Question: …`, a newline, and the prefix tokens of the scheme.

    Args:
        style (`str`, *optional*, defaults to `"steps"`):
            `"steps"`: the solution is written in the scheme of the tokenizer. For models that were not trained on
            steps: `"chain_of_thought"`, steps without marks, or `"direct"`, the answer alone.
        chat_template (`bool`, *optional*, defaults to `False`):
            Put the question into the tokenizer's chat template, as the user's turn. Demonstrations are earlier turns.
        system (`str`, *optional*): The system text of the chat.
        instruction (`str`, *optional*):
            Stands before the first question with a blank line after it, or where a template has `{instruction}`.
            Default: none for `"steps"` and for a template without `{instruction}`, otherwise a sentence that asks for
            the style. An empty text is none.
        template (`str`, *optional*):
            A text with `{question}`, and perhaps `{instruction}`, in place of `Question: …`. In a chat it is the
            text of a user's turn.
        enable_thinking (`bool`, *optional*): The argument of the same name of chat templates that know it.
        num_demonstrations (`int`, *optional*, defaults to 0): Solved questions before each question.
        demonstrations (`str`, *optional*, defaults to `"random"`): How they are chosen, one of `SELECTIONS`.
        embedding_model (`str`, *optional*): The model that compares questions for `"embedding"`.
        demonstrations_seed (`int`, *optional*, defaults to 0): Decides which ones are drawn for `"random"`.
        num_pool_items (`int`, *optional*): They are taken from this number of the first training items. Default: all.

    Raises:
        ValueError, TypeError: a value is impossible, values contradict each other, or the template swallows the
            question or the instruction.
    """

    style: str = "steps"
    chat_template: bool = False
    system: str | None = None
    instruction: str | None = None
    template: str | None = None
    enable_thinking: bool | None = None
    num_demonstrations: int = 0
    demonstrations: str = "random"
    embedding_model: str | None = None
    demonstrations_seed: int = 0
    num_pool_items: int | None = None

    def __post_init__(self):
        check_choice("style", self.style, STYLES)
        check_choice("demonstrations", self.demonstrations, SELECTIONS)
        check_type("chat_template", self.chat_template, bool, "True or False")
        check_int("num_demonstrations", self.num_demonstrations, least=0)
        check_int("demonstrations_seed", self.demonstrations_seed)
        if self.num_pool_items is not None:
            check_int("num_pool_items", self.num_pool_items, least=1)
        for name in ("system", "instruction", "template", "embedding_model"):
            check_type(name, getattr(self, name), str | None, "a text or None")
        check_type("enable_thinking", self.enable_thinking, bool | None, "True, False or None")
        for name in ("system", "enable_thinking"):
            if getattr(self, name) is not None and not self.chat_template:
                raise ValueError(
                    f"{name}={shortened(getattr(self, name))} belongs to a chat template. Set chat_template=True, or "
                    f"leave {name} out."
                )
        if self.demonstrations == "embedding" and not self.embedding_model:
            raise ValueError(
                f"demonstrations='embedding' with embedding_model={self.embedding_model!r} needs a model for "
                "sentence-transformers: a name on the Hub, or a folder."
            )
        if self.template is not None:
            self._check_template()

    def _check_template(self):
        places = template_places(self.template)
        shown = shortened(self.template)
        if places.count(QUESTION) != 1:
            raise ValueError(
                f"template={shown} swallows the question: it must have {{question}} exactly once, and has it "
                f"{places.count(QUESTION)} times."
            )
        if self.asked and INSTRUCTION not in places:
            raise ValueError(
                f"template={shown} swallows the instruction {shortened(self.asked)}: write {{instruction}} where it "
                "belongs, or leave the instruction out (instruction='')."
            )
        if INSTRUCTION in places and not self.asked:
            raise ValueError(f"template={shown} has {{instruction}}, but there is none. Set instruction.")

    @property
    def asked(self) -> str:
        """The instruction that the prompt holds, which may be empty."""
        if self.instruction is not None:
            return self.instruction.strip()
        has_place = self.template is None or INSTRUCTION in template_places(self.template)
        return default_instruction(self.style) if has_place else ""

    @property
    def is_default(self) -> bool:
        """Whether prompts are those of the study, apart from demonstrations."""
        return self.style == "steps" and not (self.chat_template or self.asked or self.template is not None)

    def to_dict(self) -> dict:
        """The fields that differ from their defaults, as JSON values."""
        values = asdict(self)
        return {entry.name: values[entry.name] for entry in fields(self) if values[entry.name] != entry.default}

    @classmethod
    def from_dict(cls, values: dict) -> "PromptFormat":
        """
        The inverse of `to_dict`.

        Raises:
            ValueError, TypeError: a field is unknown or impossible.
        """
        check_type(FORMAT_KEY, values, dict, "a mapping of the fields of a PromptFormat")
        unknown = [name for name in values if name not in {entry.name for entry in fields(cls)}]
        if unknown:
            raise ValueError(f"{FORMAT_KEY} has the unknown fields {', '.join(map(str, unknown))}.")
        return cls(**values)

    def describe(self) -> str:
        """A few words for a terminal."""
        parts = {
            "steps": [],
            "chain_of_thought": ["chain of thought"],
            "direct": ["the answer alone"],
        }[self.style]
        parts += ["chat template"] if self.chat_template else []
        parts += ["system text"] if self.system else []
        parts += ["a template of its own"] if self.template is not None else []
        parts += ["an instruction"] if self.asked else []
        if self.enable_thinking is not None:
            parts.append("thinking on" if self.enable_thinking else "thinking off")
        if self.num_demonstrations:
            chosen = {
                "random": "drawn at random",
                "bm25": "most similar by BM25",
                "embedding": f"most similar by {self.embedding_model}",
                "given": "given ones",
            }[self.demonstrations]
            noun = "demonstration" if self.num_demonstrations == 1 else "demonstrations"
            parts.append(f"{self.num_demonstrations} {noun} ({chosen})")
        return ", ".join(parts) or "the question alone"


def record_prompt_format(tokenizer: PreTrainedTokenizerBase, format: PromptFormat) -> None:
    """Records a format in a tokenizer, with which it is saved. It replaces the one that was recorded before."""
    check_has("tokenizer", tokenizer, "init_kwargs", "a tokenizer")
    check_type("format", format, PromptFormat, "a PromptFormat")
    tokenizer.init_kwargs.pop(FORMAT_KEY, None)
    if format != PromptFormat():
        tokenizer.init_kwargs[FORMAT_KEY] = format.to_dict()


def read_prompt_format(tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """
    The format that was recorded in a tokenizer; the default without one.

    Raises:
        ValueError: what was recorded is damaged.
    """
    check_has("tokenizer", tokenizer, "init_kwargs", "a tokenizer")
    values = tokenizer.init_kwargs.get(FORMAT_KEY)
    if values is None:
        return PromptFormat()
    try:
        return PromptFormat.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{FORMAT_KEY} in tokenizer_config.json of the tokenizer {tokenizer.name_or_path!r}: {error} The file is "
            "damaged, or a newer release wrote it."
        ) from None


class Prompter:
    """
    Makes the prompts of a format.

    Special strings in questions and demonstrations stay plain text. Those of a template are the tokens that they name.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            For the style `"steps"` an extended tokenizer, otherwise any.
        format (`PromptFormat`, *optional*): Default: the one that was recorded in the tokenizer.
        demonstrations (`Callable`, *optional*):
            Gives pairs of a question and its solved steps for a question, for example `Demonstrations(train, 4)`.

    Attributes:
        scheme (`StepScheme`): How solutions are written. Without an extended tokenizer they have no marks.
        end_id (`int` or `None`): The id that ends a solution: the end of the assistant's turn, or of the text.

    Raises:
        ValueError: the tokenizer has no scheme or chat template, the format needs demonstrations, or the chat template
            fails or leaves out a part of the prompt.

    Example:

    ```python
    >>> from memreason_hf import StepScheme, extend_tokenizer
    >>> from memreason_hf.data.questions.prompts import Prompter, PromptFormat

    >>> ids = extend_tokenizer(tokenizer, StepScheme(num_prefix_tokens=1, num_step_tokens=1))
    >>> prompter = Prompter(tokenizer, PromptFormat(template="Solve: {question}\\n"))
    >>> tokenizer.decode(prompter.prompt_ids("Is the sky blue?"))
    'Solve: Is the sky blue?\\n<prefix>'
    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        format: PromptFormat | None = None,
        demonstrations: Callable[[str], Demonstrated] | None = None,
    ):
        check_has("tokenizer", tokenizer, "init_kwargs", "a tokenizer")
        check_type("format", format, PromptFormat | None, "a PromptFormat or None")
        if demonstrations is not None:
            check_callable("demonstrations", demonstrations, "a function such as Demonstrations(train, 4)")
        self.tokenizer, self.demonstrations = tokenizer, demonstrations
        self.format = read_prompt_format(tokenizer) if format is None else format
        if self.format.num_demonstrations and demonstrations is None:
            raise ValueError(
                f"The prompt has num_demonstrations={self.format.num_demonstrations}, but there is nothing to take "
                "them from. Pass demonstrations, or a format without them."
            )
        is_extended = tokenizer.init_kwargs.get(SCHEME_KEY) is not None
        needs_scheme = self.format.style == "steps" or is_extended
        self.scheme = read_scheme(tokenizer) if needs_scheme else StepScheme(marks="none")
        self.end_id = tokenizer.eos_token_id
        if self.format.chat_template:
            self._check_chat_template()
            self.end_id = self._end_of_turn()

    def prompt_ids(self, question: str) -> list[int]:
        """
        The ids that a model continues. They end with `start_ids`.

        Args:
            question (`str`): Plain text. Special strings in it stay plain.

        Raises:
            ValueError: the template leaves out the question, or a part of a demonstration.
        """
        check_type("question", question, str, "a text")
        solved = self._solved(question)
        if self.format.is_default:
            return encode_prompt(self.tokenizer, question, solved)
        shield = Shield(self.tokenizer, self.scheme.tokens)
        if self.format.chat_template:
            ids = shield.encode(self._chat_text(question, solved, shield))
        else:
            ids = shield.encode(self._plain_text(question, solved, shield))
            begin = begin_ids(self.tokenizer)
            # A template can begin with the BOS token itself.
            ids = ids if ids[: len(begin)] == begin else begin + ids
        return ids + self.start_ids(bool(solved))

    def text(self, question: str) -> str:
        """The prompt as text, as the model gets it."""
        return self.tokenizer.decode(
            self.prompt_ids(question), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def start_text(self, has_demonstrations: bool = False) -> str:
        """The text at the end of a prompt that already belongs to the solution."""
        if self.format.style == "direct":
            return ANSWER_MARKER
        if self.format.style == "chain_of_thought":
            return "" if has_demonstrations else STEP_BY_STEP
        return "".join(self.scheme.prefix_tokens)

    def start_ids(self, has_demonstrations: bool = False) -> list[int]:
        """The ids of `start_text`."""
        if self.format.style == "steps":
            return self.tokenizer.convert_tokens_to_ids(list(self.scheme.prefix_tokens))
        text = self.start_text(has_demonstrations)
        return encode_plain(self.tokenizer, text) if text else []

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that begin a further question, which a model that does not end its texts goes on to ask."""
        if self.format.template is None:
            return (f"\n{QUESTION_MARKER.strip()}",)
        head = next((line.strip() for line in self.format.template.splitlines() if line.strip()), "")
        head = head.split("{")[0].strip()
        return (f"\n{QUESTION_MARKER.strip()}", *([f"\n{head}"] if head else []))

    @property
    def shows_demonstrations(self) -> bool:
        """Whether prompts hold demonstrations."""
        return self.demonstrations is not None

    def _solved(self, question):
        solved = self.demonstrations(question) if self.demonstrations is not None else ()
        if self.format.num_demonstrations and len(solved) != self.format.num_demonstrations:
            raise ValueError(
                f"The prompt has num_demonstrations={self.format.num_demonstrations}, but demonstrations gave "
                f"{len(solved)} for {question[:60]!r}."
            )
        for pair in solved:
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise TypeError(f"demonstrations hold {pair!r}, but each must be a pair of a question and its steps.")
        return solved

    def _plain_text(self, question, solved, shield):
        parts = []
        if self.format.template is None and self.format.asked:
            parts.append(f"{self.format.asked}\n\n")
        for shown, steps in solved:
            parts += [self._question_text(shown, shield), self._solution_text(steps, shield), "\n"]
        return "".join([*parts, self._question_text(question, shield)])

    def _chat_text(self, question, solved, shield):
        instruction = f"{self.format.asked}\n\n" if self.format.template is None and self.format.asked else ""
        messages = [] if self.format.system is None else [{"role": "system", "content": self.format.system.strip()}]
        for shown, steps in solved:
            messages.append({"role": "user", "content": instruction + self._question_text(shown, shield)})
            messages.append({"role": "assistant", "content": self._solution_text(steps, shield)})
            instruction = ""
        messages.append({"role": "user", "content": instruction + self._question_text(question, shield)})
        text = self._apply(messages)
        position = 0
        for message in messages:
            content = message["content"].strip()
            found = text.find(content, position)
            if found < 0:
                what = "question" if message is messages[-1] else f"{message['role']} text"
                raise ValueError(
                    f"The chat template of the tokenizer {self.tokenizer.name_or_path!r} swallows the {what} "
                    f"{shortened(content)}, or changes it. Use another chat template, or chat_template=False."
                )
            position = found + len(content)
        return text

    def _question_text(self, question, shield):
        shown = shield.cover(question)
        if self.format.template is not None:
            return fill_template(self.format.template, question=shown, instruction=self.format.asked)
        return shown.strip() if self.format.chat_template else self.scheme.question_text(shown)

    def _solution_text(self, steps, shield):
        if self.format.style == "steps":
            return shield.cover(self.scheme.render(steps), keep=self.scheme.tokens)
        steps = list(steps)[-1:] if self.format.style == "direct" else [s for s in map(as_step, steps) if s.text]
        return shield.cover(StepScheme(marks="none").render(steps))

    def _apply(self, messages, is_prompt=True):
        thinking = self.format.enable_thinking
        arguments = {} if thinking is None else {"enable_thinking": thinking}
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=is_prompt, **arguments
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            hint = " Leave the system text out if the template has no place for it." if self.format.system else ""
            raise ValueError(
                f"The chat template of the tokenizer {self.tokenizer.name_or_path!r} fails: {first_line(error)}.{hint}"
            ) from None

    def _check_chat_template(self):
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"The tokenizer {self.tokenizer.name_or_path!r} has no chat template. Leave chat_template out, or use "
                "an instruct model."
            )
        # With a demonstration if there will be some, because some templates drop earlier turns.
        solved = [("Is a probe shown?", [answer_step(COMPLETION)])] if self.demonstrations is not None else []
        shield = Shield(self.tokenizer, self.scheme.tokens)
        self._chat_text("Is the question of the probe shown?", solved, shield)

    def _end_of_turn(self):
        """The first special token after what the assistant says; the end of the text without one."""
        question = self._question_text("Is it?", Shield(self.tokenizer, self.scheme.tokens))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": COMPLETION}]
        _, found, rest = self._apply(messages, is_prompt=False).rpartition(COMPLETION)
        if found:
            special = set(self.tokenizer.all_special_ids)
            for token_id in self.tokenizer(rest, add_special_tokens=False)["input_ids"]:
                if token_id in special:
                    return token_id
        return self.tokenizer.eos_token_id


def lone_prompter(tokenizer: PreTrainedTokenizerBase, format: PromptFormat | None = None) -> Prompter:
    """
    The prompter for questions that come alone, as from a visitor or to a server: a format without its demonstrations,
    which belong to the training questions. Where they were recorded in the tokenizer, a warning says so once.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): See `Prompter`.
        format (`PromptFormat`, *optional*): Default: the one that was recorded in the tokenizer.

    Raises:
        ValueError: as for `Prompter`.
    """
    recorded = read_prompt_format(tokenizer)
    if format is None and recorded.num_demonstrations:
        logger.warning_once(
            f"The model was trained with {recorded.num_demonstrations} demonstrations before each question, which "
            "come from its training questions. It gets questions without them here, and may answer worse."
        )
    return Prompter(tokenizer, replace(recorded if format is None else format, num_demonstrations=0))
