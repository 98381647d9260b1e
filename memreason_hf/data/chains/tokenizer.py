"""Vocabulary of a multi-hop world, and the word-level tokenizer over it."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memreason_hf.checks import check_path, check_sequence
from memreason_hf.files import read_json
from memreason_hf.messages import first_few
from memreason_hf.model_files import read_json_files


PAD_TOKEN = "<pad>"
END_OF_ANSWER = "</a>"
EXTRA_TOKENS = ("<mask>", "<sep>", "<a>", END_OF_ANSWER, "<q>", "</q>")
VOCABULARY_FILE = "vocab.json"
TOKENIZER_FILE = "tokenizer.json"

# Without blanks, quotes and backslashes, texts split unambiguously and need no escapes in JSON.
_TOKEN_PATTERN = re.compile(r'<[^<>"\\\s\x00-\x1f\x7f-\U0010ffff]+>')


def entity_token(index: int) -> str:
    return f"<e_{index}>"


def relation_token(index: int) -> str:
    return f"<r_{index}>"


def build_vocabulary(num_entities: int, num_relations: int) -> list[str]:
    """
    Tokens in the order of their ids: `<pad>` (id 0), entities, relations, then the six other tokens of the study.
    """
    entities = [entity_token(i) for i in range(num_entities)]
    relations = [relation_token(i) for i in range(num_relations)]
    return [PAD_TOKEN, *entities, *relations, *EXTRA_TOKENS]


def write_vocabulary(vocabulary: Sequence[str], folder: str | Path):
    """
    Writes `vocab.json` in the study's schema: the list of the tokens without a leading `<pad>`, which its loader and
    `read_vocabulary` put first.
    """
    tokens = list(check_vocabulary(vocabulary))
    if tokens[0] == PAD_TOKEN:
        tokens = tokens[1:]
    Path(folder, VOCABULARY_FILE).write_text(json.dumps(tokens), encoding="utf-8")


def read_vocabulary(folder: str | Path) -> list[str]:
    """
    Reads `vocab.json`, a list of tokens. If the list has no `<pad>`, that token becomes the first one (id 0).

    Returns:
        The tokens in the order of their ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    path = Path(folder, VOCABULARY_FILE)
    tokens = read_json(path)
    if not isinstance(tokens, list):
        raise ValueError(f"{path} holds a {type(tokens).__name__}; it must hold the list of tokens, in order.")
    if PAD_TOKEN not in tokens:
        tokens = [PAD_TOKEN, *tokens]
    try:
        return list(check_vocabulary(tokens))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_vocabulary(vocabulary: Sequence[str]) -> Sequence[str]:
    """
    Returns the vocabulary.

    Raises:
        ValueError: a token is malformed, occurs twice or is missing.
    """
    malformed = [t for t in vocabulary if not isinstance(t, str) or not _TOKEN_PATTERN.fullmatch(t)]
    if malformed:
        raise ValueError(
            f"{first_few([*map(repr, malformed)])} cannot be in the vocabulary: a token must be `<...>` with "
            "printable ASCII characters, but without blanks, quotes and backslashes."
        )
    if len(set(vocabulary)) < len(vocabulary):
        repeated = [token for token, count in Counter(vocabulary).items() if count > 1]
        raise ValueError(f"The vocabulary holds {first_few(repeated)} more than once. Remove the copies.")
    missing = [token for token in (PAD_TOKEN, END_OF_ANSWER) if token not in vocabulary]
    if missing:
        raise ValueError(f"The vocabulary lacks {first_few(missing)}. Add {'it' if len(missing) == 1 else 'them'}.")
    return vocabulary


def build_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """
    The word-level tokenizer over `vocabulary`, whose order gives the ids.

    Texts of tokens (`<e_3><r_1>`) are split into words; blanks between words are skipped, and decoding writes none.
    There is no unknown token, so a word outside the vocabulary raises an error. Padding is on the left, so that the
    answer position is the last one of every row.

    Example:

        >>> tokenizer = build_tokenizer(build_vocabulary(num_entities=3, num_relations=2))
        >>> tokenizer("<e_2><r_0>")["input_ids"]
        [3, 4]
    """
    check_sequence("vocabulary", vocabulary, "a list of tokens")
    ids = {token: index for index, token in enumerate(check_vocabulary(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(ids))
    # "isolated" keeps text between tokens as words, which then raise an error; "removed" would hide it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), behavior="removed"),
            pre_tokenizers.Split(Regex("<[^<>]+>"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_multi_hop_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """
    The tokenizer saved with a data set, or built from its `vocab.json` if the folder has only JSON files.

    Raises:
        FileNotFoundError: the folder has neither file.
        ValueError: the two files differ.
    """
    check_path("path", path)
    folder = Path(path)
    has_tokenizer, has_vocabulary = (Path(folder, name).is_file() for name in (TOKENIZER_FILE, VOCABULARY_FILE))
    if not has_tokenizer and not has_vocabulary:
        raise FileNotFoundError(
            f"{folder} holds neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}, so it is not a data set."
        )
    if not has_tokenizer:
        return build_tokenizer(read_vocabulary(folder))
    read_json_files(folder, "tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # a damaged tokenizer.json raises a bare Exception
        raise ValueError(f"{folder / TOKENIZER_FILE} cannot be read: {error}. Build the data set again.") from error
    if has_vocabulary:
        expected = {token: index for index, token in enumerate(read_vocabulary(folder))}
        known = tokenizer.get_vocab()
        if any(known.get(token) != index for token, index in expected.items()):
            raise ValueError(
                f"{folder}: {TOKENIZER_FILE} ({len(known)} tokens) and {VOCABULARY_FILE} ({len(expected)} tokens) "
                "differ. Build the data set again, or remove the wrong file."
            )
    return tokenizer
