"""
Step tokens in a tokenizer and in a model: adds them, encodes texts around them, decodes generated ids.

    scheme = StepScheme(num_prefix_tokens=2, num_step_tokens=4)
    extend_tokenizer(tokenizer, scheme, model)
    input_ids = encode_prompt(tokenizer, "Is the sky blue?")
    text = decode_solution(tokenizer, generated_ids)
    read_scheme(tokenizer).parse(text)
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from tokenizers import AddedToken
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.checks import check_has, check_sequence, check_type
from memreason_hf.patches import name_tokens, show_tokens
from memreason_hf.steps.kinds import PREFIX, check_kind, is_random_group
from memreason_hf.steps.marks import split_at
from memreason_hf.steps.scheme import Step, StepScheme
from modeling_recurrent import RecurrentDepthConfig


# The key of the scheme among a tokenizer's init arguments, which are saved with it, and in a model's config.
SCHEME_KEY = "step_scheme"
RecurrentDepthConfig.register_key(SCHEME_KEY)
_IDS_KEY = "token_ids"
_ROWS_BEFORE_KEY, _NEW_ROWS_KEY = "rows_before", "new_rows"
_MOST_SAMPLED_ROWS = 4096
# Copies of tokenizers whose step tokens are visible, for `plain_encoding`.
_HIDDEN = WeakKeyDictionary()


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    scheme: StepScheme,
    model: PreTrainedModel | None = None,
    *,
    visible_marks: bool | None = None,
) -> list[int]:
    """
    Adds the tokens of a scheme to a tokenizer, and rows for them to a model. Calling it again changes nothing.

    The first token of every group gets a name: `tokenizer.memory_token`, `tokenizer.memory_token_id`, and so on for
    prefix, reason, answer and step. Names and scheme are saved with the tokenizer (`read_scheme`).

    The model is resized only if the vocabulary outgrows its rows, and never made smaller, because an embedding matrix
    can be larger than the vocabulary. A new row is the mean of the rows of the word that its token stands for, with a
    leading space, or of all old rows if the tokenizer does not know the word. A token that stands for nothing
    (`random_marks`) gets a random row with the mean and the spread of the old ones, the same in every call. All is
    computed in float32, for the input embedding and for a head that is not tied to it. The model's config records
    which rows were set, so trained rows are kept after saving and loading.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Any tokenizer. It is changed in place.
        scheme (`StepScheme`): Names the tokens. A scheme without tokens is only recorded.
        model ([`~transformers.PreTrainedModel`], *optional*):
            A model for this tokenizer, extended before or not. It is changed in place.
        visible_marks (`bool`, *optional*):
            Whether `decode(skip_special_tokens=True)` keeps the tokens, and with it
            `pipeline("text-generation")`, TRL's trainers and servers. `False` makes them special tokens, which all of
            these remove. `True` makes them ordinary added tokens without names: `step_token_ids` has their ids. This
            is saved with the tokenizer, and also switches a tokenizer that is extended already. By default an extended
            tokenizer stays as it is, and another one gets special tokens.

    Returns:
        `list[int]`: the ids of the scheme's tokens, in the order of `scheme.tokens`.

    Raises:
        ValueError: the tokenizer uses a token of the scheme, or its name, for something else.

    Example:

    ```python
    >>> from memreason_hf import StepScheme, extend_tokenizer

    >>> ids = extend_tokenizer(tokenizer, StepScheme(num_prefix_tokens=1, num_step_tokens=1), model)
    >>> tokenizer.memory_token
    '<memory>'
    ```
    """
    check_has("tokenizer", tokenizer, "convert_tokens_to_ids", "a tokenizer")
    check_type("scheme", scheme, StepScheme, "a StepScheme")
    if model is not None:
        check_has("model", model, "get_input_embeddings", "a model")
    if visible_marks is not None:
        check_type("visible_marks", visible_marks, bool, "True or False")
    tokens = list(scheme.tokens)
    groups = {name: group for name, group in scheme.groups.items() if group}
    _check_unused(tokenizer, groups)
    if tokens and (has_visible_marks(tokenizer, scheme) if visible_marks is None else visible_marks):
        show_tokens(tokenizer, tokens)
        # They match the text as it is, as special tokens do.
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    elif tokens:
        names = {f"{name}_token": group[0] for name, group in groups.items()}
        name_tokens(tokenizer, names)
        # The list comes before the names, so that the ids are in the order of the scheme.
        tokenizer.add_special_tokens({"extra_special_tokens": tokens, **names}, replace_extra_special_tokens=False)
    tokenizer.init_kwargs[SCHEME_KEY] = scheme.to_dict()
    token_ids = tokenizer.convert_tokens_to_ids(tokens)
    if model is not None:
        _extend_model(model, tokenizer, scheme, token_ids)
    return token_ids


def read_scheme(tokenizer: PreTrainedTokenizerBase) -> StepScheme:
    """
    The scheme that a tokenizer was extended with. It is kept when the tokenizer is saved and loaded.

    Raises:
        ValueError: the tokenizer was not extended, or lacks tokens of its scheme.
    """
    check_has("tokenizer", tokenizer, "init_kwargs", "a tokenizer")
    values = tokenizer.init_kwargs.get(SCHEME_KEY)
    if values is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no scheme of steps. Extend it with extend_tokenizer("
            "tokenizer, StepScheme(...)), or use the tokenizer that was saved with the trained model."
        )
    try:
        scheme = StepScheme.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{SCHEME_KEY} in tokenizer_config.json of the tokenizer {tokenizer.name_or_path!r}: {error} The file is "
            "damaged, or a newer release wrote it."
        ) from None
    check_tokens(tokenizer, scheme)
    return scheme


def check_tokens(tokenizer: PreTrainedTokenizerBase, scheme: StepScheme) -> None:
    """
    Checks that a tokenizer has the tokens of a scheme.

    Raises:
        ValueError: it lacks some, which the message names.
    """
    # One by one: `get_vocab` takes long for a large vocabulary, and this is called for every prompt.
    ids = [tokenizer.convert_tokens_to_ids(token) for token in scheme.tokens]
    missing = [
        token for token, id_ in zip(scheme.tokens, ids) if id_ is None or tokenizer.convert_ids_to_tokens(id_) != token
    ]
    if missing:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} lacks {len(missing)} of the {len(scheme.tokens)} tokens of "
            f"{scheme}: {', '.join(missing[:5])}. Extend it with extend_tokenizer(tokenizer, scheme), or use the "
            "tokenizer that was saved with the trained model."
        )


def new_rows(model: PreTrainedModel) -> tuple[int, list[int]]:
    """
    How `extend_tokenizer` changed a model.

    Returns:
        The rows of its embedding before, and the ids whose rows were set: those of the scheme's tokens, and of other
        tokens or gaps that the model had no row for.

    Raises:
        ValueError: the model was not extended.
    """
    recorded = getattr(model.config, SCHEME_KEY, None) or {}
    if _NEW_ROWS_KEY not in recorded:
        raise ValueError(
            f"The model {model.name_or_path!r} has no rows for the tokens of steps. Extend it together with its "
            "tokenizer: extend_tokenizer(tokenizer, scheme, model)."
        )
    return recorded[_ROWS_BEFORE_KEY], recorded[_NEW_ROWS_KEY]


def step_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The ids of every group of tokens: `{"prefix": [...], "memory": [...], "reason": [...], ...}`. Some are empty."""
    groups = read_scheme(tokenizer).groups
    return {name: tokenizer.convert_tokens_to_ids(list(tokens)) for name, tokens in groups.items()}


def token_groups(tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """
    The ids of every group of step tokens, from an extended tokenizer or as they are.

    Raises:
        ValueError, TypeError: `tokens` is neither, or names a group that no scheme can have.
    """
    if isinstance(tokens, PreTrainedTokenizerBase):
        return step_token_ids(tokens)
    check_type("tokens", tokens, Mapping, "an extended tokenizer, or a mapping from groups to token ids")
    for name, ids in tokens.items():
        if name != PREFIX and not is_random_group(name):
            check_kind("the name of a group of tokens", name)
        check_sequence(f"tokens[{name!r}]", ids, "a list of token ids")
    return tokens


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    The ids of a text without special tokens: `</s>` or `<memory_0>` in a user's question is encoded as characters.

    A word-level vocabulary can contain such a string as a word. The unknown token replaces it then.

    Raises:
        ValueError: the tokenizer has no unknown token.
    """
    ids = plain_encoding(tokenizer, text)["input_ids"]
    unknown = tokenizer.unk_token_id
    marks = tokenizer.convert_tokens_to_ids(_own_tokens(tokenizer))
    special = {*tokenizer.all_special_ids, *marks} - {unknown}
    if special.isdisjoint(ids):
        return ids
    if unknown is None or unknown in special:
        token = tokenizer.convert_ids_to_tokens(next(token_id for token_id in ids if token_id in special))
        raise ValueError(
            f"{text[:80]!r} holds {token}, which this tokenizer can only read as a special token, because it has no "
            "unknown token. Remove it from the text."
        )
    return [unknown if token_id in special else token_id for token_id in ids]


def plain_encoding(tokenizer: PreTrainedTokenizerBase, text: str, **kwargs) -> BatchEncoding:
    """
    What `tokenizer(text, add_special_tokens=False, **kwargs)` returns if no string in the text counts as a special
    token or as a step token. A word of the vocabulary is encoded as such, whatever it means; see `encode_plain`.
    """
    # `split_special_tokens` does not split added tokens that are visible.
    if tokenizer.is_fast and any(token in text for token in _own_tokens(tokenizer)):
        tokenizer = _with_hidden_marks(tokenizer)
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, **kwargs)


def has_visible_marks(tokenizer: PreTrainedTokenizerBase, scheme: StepScheme | None = None) -> bool:
    """
    Whether `decode(skip_special_tokens=True)` keeps the tokens of steps; see `visible_marks` of `extend_tokenizer`.

    Args:
        scheme (`StepScheme`, *optional*): By default that of the tokenizer.

    Raises:
        ValueError: the tokenizer was not extended, and no scheme is given.
    """
    tokens = set((read_scheme(tokenizer) if scheme is None else scheme).tokens)
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    return bool(tokens) and all(added.get(token) is False for token in tokens)


def _own_tokens(tokenizer):
    """The tokens of the tokenizer's scheme; none if it was not extended."""
    return read_scheme(tokenizer).tokens if SCHEME_KEY in tokenizer.init_kwargs else ()


def _with_hidden_marks(tokenizer):
    """A copy whose step tokens are special. Copying takes up to a second, but few texts hold such a token."""
    scheme, size = read_scheme(tokenizer), len(tokenizer)
    known = _HIDDEN.get(tokenizer)
    if known is None or known[:2] != (scheme, size):
        hidden = copy.deepcopy(tokenizer)
        extend_tokenizer(hidden, scheme, visible_marks=False)
        known = _HIDDEN[tokenizer] = (scheme, size, hidden)
    return known[2]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    The id that pads shorter rows of a batch: that of the padding token, or else of the EOS token.

    Raises:
        ValueError: the tokenizer has neither.
    """
    check_has("tokenizer", tokenizer, "pad_token_id", "a tokenizer")
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise ValueError("The tokenizer has neither a padding nor an end token. Set tokenizer.pad_token.")


def encode_solution(tokenizer: PreTrainedTokenizerBase, steps: Iterable[Step | Mapping]) -> list[int]:
    """The ids of the text `read_scheme(tokenizer).render(steps)`. Only its marks become special tokens."""
    scheme = read_scheme(tokenizer)
    text = scheme.render(steps)
    foreign = [token for token in tokenizer.all_special_tokens if token not in scheme.tokens]
    if not any(token in text for token in foreign):
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    # Piece by piece, but only where it is necessary: some tokenizers put a space before every piece.
    ids = []
    for piece in split_at(text, scheme.tokens):
        is_mark = piece in scheme.tokens
        ids += [tokenizer.convert_tokens_to_ids(piece)] if is_mark else encode_plain(tokenizer, piece)
    return ids


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, demonstrations: Sequence[tuple[str, Sequence]] = ()
) -> list[int]:
    """
    The ids that a model continues: the BOS token if the tokenizer adds one, the demonstrations, the question, and the
    prefix tokens of the first step.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The extended tokenizer.
        question (`str`): Plain text. Special strings in it stay plain.
        demonstrations (`Sequence[tuple[str, Sequence]]`, *optional*):
            Pairs of a question and the steps of its solution, the answer last. A blank line follows each of them.
    """
    scheme = read_scheme(tokenizer)
    ids = begin_ids(tokenizer)
    check_sequence("demonstrations", demonstrations, "a list of pairs of a question and its steps")
    for pair in demonstrations:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"demonstrations hold {pair!r}, but each must be a pair of a question and its steps.")
        shown, steps = pair
        ids += encode_plain(tokenizer, scheme.question_text(shown)) + encode_solution(tokenizer, steps)
        ids += encode_plain(tokenizer, "\n")
    ids += encode_plain(tokenizer, scheme.question_text(question))
    return ids + tokenizer.convert_tokens_to_ids(list(scheme.prefix_tokens))


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The id of the BOS token in a list, which is empty if the tokenizer does not add one."""
    begin = tokenizer("")["input_ids"][:1]
    return begin if begin and begin[0] == tokenizer.bos_token_id else []


def decode_solution(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int] | torch.Tensor) -> str:
    """
    The text of generated ids with its step tokens, which `skip_special_tokens` would remove.

    Only the BOS, EOS and padding tokens are left out.
    """
    ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    dropped = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    text = _decode(tokenizer, [token_id for token_id in ids if token_id not in dropped])
    tokens = read_scheme(tokenizer).tokens
    if tokens and _adds_spaces(tokenizer, tokens[0]):
        pieces = split_at(text, tokens)
        after_token = [False, *(piece in tokens for piece in pieces)]
        text = "".join(piece.removeprefix(" ") if after else piece for after, piece in zip(after_token, pieces))
    return text


def _decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _adds_spaces(tokenizer, token):
    """Whether encoding adds a space before every piece of text, as the tokenizer of Llama 2 does."""
    probe = f"{token} {token}"
    return _decode(tokenizer, tokenizer(probe, add_special_tokens=False)["input_ids"]) == f"{token}  {token}"


def _check_unused(tokenizer, groups):
    """Checks that the tokenizer does not use the tokens of groups, or their names, for something else."""
    for name, group in groups.items():
        value = getattr(tokenizer, f"{name}_token", None)
        if value is not None and str(value) not in (f"<{name}>", f"<{name}_0>"):
            raise ValueError(f"{name}_token of the tokenizer is {value!r} already. Choose another kind than {name!r}.")
        for role in type(tokenizer).SPECIAL_TOKENS_ATTRIBUTES:
            if getattr(tokenizer, role, None) in group:
                raise ValueError(
                    f"{getattr(tokenizer, role)} is the {role} of the tokenizer already. Choose another kind than "
                    f"{name!r}, or another number of tokens."
                )


def _extend_model(model, tokenizer, scheme, token_ids):
    recorded = getattr(model.config, SCHEME_KEY, None) or {}
    done = set(recorded.get(_IDS_KEY, ()))
    vocabulary = tokenizer.get_vocab()
    # Ids can have gaps, so the largest counts as well as their number.
    needed = max(len(tokenizer), 1 + max(vocabulary.values(), default=-1))
    rows_before = model.get_input_embeddings().weight.shape[0]
    if needed > rows_before:
        model.resize_token_embeddings(needed, mean_resizing=False)
    of_steps = set(token_ids)
    old_ids = sorted(id_ for id_ in vocabulary.values() if id_ < rows_before and id_ not in of_steps)
    # Other new rows belong to tokens that were added elsewhere, or to gaps between ids.
    pieces = {id_: [] for id_ in range(rows_before, needed)}
    words = scheme.words
    candidates = set(old_ids) - {tokenizer.unk_token_id}
    known = {word: _known_pieces(tokenizer, word, candidates) for word in set(words.values()) - {None}}
    # Tokens that stand for nothing.
    known[None] = None
    pieces |= {id_: known[words[token]] for token, id_ in zip(scheme.tokens, token_ids) if id_ not in done}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [embedding.weight]
    if head is not None:
        matrices += [] if head.weight is embedding.weight else [head.weight]
        matrices += [] if getattr(head, "bias", None) is None else [head.bias]
    if pieces:
        with torch.no_grad():
            for matrix in matrices:
                _set_rows(matrix, pieces, old_ids)
    record = {
        **scheme.to_dict(),
        _IDS_KEY: list(token_ids),
        _ROWS_BEFORE_KEY: recorded.get(_ROWS_BEFORE_KEY, rows_before),
        _NEW_ROWS_KEY: sorted({*recorded.get(_NEW_ROWS_KEY, token_ids), *pieces}),
    }
    setattr(model.config, SCHEME_KEY, record)


def _known_pieces(tokenizer, word, candidates):
    try:
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    except Exception:  # a word-level model without an unknown token raises a plain Exception
        return []
    return [id_ for id_ in ids if id_ in candidates]


def _set_rows(matrix, pieces, old_ids):
    """
    Sets rows of a matrix, or of a bias: each to the mean of the rows of its pieces, or of all old rows if it has none,
    or to random values if its pieces are None.
    """
    mean = None
    if [] in pieces.values():
        is_range = old_ids == list(range(len(old_ids)))
        # A slice is a view. A copy would be as large as the vocabulary.
        old = matrix[: len(old_ids)] if is_range else matrix[old_ids]
        mean = old.mean(dim=0, dtype=torch.float32)
    for row, ids in pieces.items():
        if ids is None:
            matrix[row] = _random_row(matrix, row, old_ids)
        else:
            matrix[row] = matrix[ids].mean(dim=0, dtype=torch.float32) if ids else mean


def _random_row(matrix, row, old_ids):
    """Values from normal distributions with the mean and the spread of the old rows in each dimension."""
    # A sample of them, not a copy of the whole matrix.
    sample = matrix[old_ids[:: max(1, len(old_ids) // _MOST_SAMPLED_ROWS)]].float()
    noise = torch.randn(matrix.shape[1:], generator=torch.Generator().manual_seed(row)).to(sample.device)
    return sample.mean(0) + noise * sample.std(0, correction=0)
