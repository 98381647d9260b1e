"""
`memreason perplexity`: how well a model predicts text after every recurrence, in one pass.

    memreason perplexity runs/text --data heldout.txt --max_recurrences 16 --output_dir results
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

from memreason_hf.analysis import perplexity_figure
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.data.text.sources import read_texts
from memreason_hf.evaluation import describe_environment, read_results
from memreason_hf.evaluation.text.documents import tokenize_documents
from memreason_hf.evaluation.text.perplexity import perplexity_by_recurrence, row_length
from memreason_hf.evaluation.text.results import describe_text_model, perplexity_results, perplexity_table


PROG = "memreason perplexity"
DESCRIPTION = """\
Runs a model on text and prints its loss, perplexity and bits per byte after each of the recurrences
1..max_recurrences, in one pass. A model without recurrences is read once, to compare with.
"""
EPILOG = """\
examples:
  memreason perplexity runs/text --data heldout.txt
  memreason perplexity converted --data a.jsonl b.parquet --column text --max_recurrences 32 --output_dir results
  memreason perplexity converted --data heldout.txt --compare static/perplexity.json --output_dir results

Perplexities are comparable between models with one tokenizer, bits per byte between all. With --output_dir it writes
perplexity.json (its schema: memreason_hf/evaluation/text/results.py) and the picture perplexity, as PNG and PDF.
"""


@dataclass
class TextFlags:
    """The text, and how it is read."""

    data: list[str] = field(
        metadata={"help": "Files of text: .txt (one document), .jsonl or .parquet (a document in each row), UTF-8."}
    )
    column: str = field(default="text", metadata={"help": "The key or column of the texts in .jsonl and .parquet."})
    max_documents: int | None = field(
        default=None, metadata={"help": "The most documents to read, the first ones. Default: all."}
    )
    max_length: int = field(
        default=1024,
        metadata={
            "help": "Tokens of a row, at most the model's context. Longer documents are cut; a piece does not see the "
            "ones before it."
        },
    )
    packed: bool = field(
        default=False, metadata={"help": "Let documents share rows, without attention between them: less padding."}
    )
    max_recurrences: int | None = field(
        default=None, metadata={"help": "The last recurrence that is read. Default: max_recurrences of the config."}
    )


@dataclass
class CompareFlags:
    """Curves of other models."""

    compare: list[str] | None = field(
        default=None, metadata={"help": "perplexity.json files of other models over the same text, to draw as curves."}
    )


def make_parser() -> CommandParser:
    sections = [
        model_section(batch_size=8),
        Section("text", TextFlags, "text", key="inputs"),
        Section("compare", CompareFlags, "other models", key="inputs"),
        dataclasses.replace(OUTPUT, left_out=("trained_hops",)),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, text, compare, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "perplexity", ["perplexity"])
        with folder.reserved():
            return _evaluate(model, text, compare, output, folder)


def _read_other(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"compare={path!r}: no such file. Pass a perplexity.json of this command.")
    results = read_results(path)
    if results["kind"] != "perplexity":
        raise ValueError(
            f"compare={path!r} holds results of kind {results['kind']!r}, but must be of kind 'perplexity'."
        )
    return results


def _evaluate(model, text, compare, output, folder):
    model.check()
    for name in ("max_documents", "max_length", "max_recurrences"):
        value = getattr(text, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    others = {path: _read_other(path) for path in compare.compare or ()}
    texts = read_texts(text.data, text.column, "data")[: text.max_documents]
    config = model.load_config()
    documents = tokenize_documents(texts, model.load_tokenizer(config))
    network = model.load_model()
    settings = {
        "max_length": row_length(network.config, text.max_length),
        "batch_size": model.batch_size,
        "packed": text.packed,
    }
    result = perplexity_by_recurrence(
        network,
        documents.ids,
        max_recurrences=text.max_recurrences,
        num_bytes=documents.num_bytes,
        progress=not model.no_progress,
        **settings,
    )
    results = perplexity_results(
        result,
        model=describe_text_model(network, model.model),
        environment=describe_environment(next(network.parameters()).device),
        files=text.data,
        **settings,
    )
    title = f"{model.short_name} on {result.num_documents} documents, {result.num_tokens:,} tokens"
    print(f"{title}\n\n{perplexity_table(results)}\n")
    print(f"{result.num_tokens / max(result.seconds, 1e-9):,.0f} tokens a second, all depths in one pass.")
    curves = {model.short_name: results}
    for path, other in others.items():
        curves[_label(other, path, curves)] = other
    folder.write(results, {"perplexity": perplexity_figure(curves, title=title)})
    return 0


def _label(results, path, taken):
    """The end of the model's path, or of the file's where that is taken."""
    names = (results["model"]["name_or_path"] if results["kind"] == "perplexity" else path, Path(path).parent, path)
    labels = ["/".join(Path(name).parts[-2:]) for name in names]
    return next((label for label in labels if label not in taken), str(path))


if __name__ == "__main__":
    sys.exit(main())
