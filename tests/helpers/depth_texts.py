"""A generated text with all characters that are difficult to display."""

from memreason_hf.analysis.token_depths import GeneratedText, Piece, TokenDepth


def piece(text, *tokens):
    return Piece(text, tuple(TokenDepth(*token) for token in tokens))


def sample_text():
    """Tags, a character over several tokens, blank lines, control characters and an end."""
    return GeneratedText(
        prompt="a <b>\n",
        prompt_pieces=(piece("a", (1, "a", 2)), piece(" <b>", (2, "Ġ<b>", 4)), piece("\n", (3, "Ċ", 1))),
        pieces=(
            piece("</span><script>", (4, "</span><script>", 3)),
            piece("日", (5, "æ", 5), (6, "Ĺ", 9), (7, "¥", 6)),
            piece("x\n\n", (8, "xĊĊ", 16)),
            piece("\x1b[31m\x00", (9, '"&', 1)),
            piece("", (10, "</s>", 7)),
        ),
        finish_reason="eos",
    )
