"""What conversions print: their progress, and how far the result is from its source."""

import sys
import time
from collections.abc import Callable

from memreason_hf.models.conversion.folders import ConvertedFolder
from memreason_hf.models.conversion.record import CONVERSION_FILE
from memreason_hf.tables import format_table


def progress_reporter() -> Callable[[str], None]:
    """Prints each step to standard error, with the seconds since the first."""
    start = time.perf_counter()

    def report(message):
        print(f"[{time.perf_counter() - start:5.1f} s] {message}", file=sys.stderr, flush=True)

    return report


def print_written(written: ConvertedFolder, out: str, seconds: float) -> None:
    """Prints the sizes, the differences, notes and the folder of a conversion."""
    record = written.record
    source, result = record["source"], record["result"]
    print(
        f"{source['model_type']} with {source['num_layers']} layers and {source['num_parameters']:,} parameters -> "
        f"{result['model_type']} with {result['num_layers']} layers and {result['num_parameters']:,} parameters, "
        f"{result['dtype']}"
    )
    if "exactness" in record:
        print(describe_exactness(record["exactness"]))
    for note in written.notes:
        print(f"Note: {note}")
    print(f"Wrote {out} with {CONVERSION_FILE} in {seconds:.0f} s.")


def describe_exactness(exactness: dict) -> str:
    """A table of the differences, and a sentence that says what they mean."""
    rows = [
        [name.replace("_", " "), "not finite" if value is None else f"{value:.3g}"]
        for name, value in exactness["differences"].items()
    ]
    depth = exactness["num_recurrences"]
    title = (
        f"\nLargest difference of logits in float32, num_recurrences={depth} against the {exactness['reference']}, "
        f"{exactness['num_rows']} rows of {exactness['num_tokens']} tokens:\n"
    )
    if exactness["is_exact"]:
        verdict = "Exact: every difference is 0.0."
    elif exactness["is_expected"]:
        verdict = f"NOT exact, but within rounding: the largest logit is {exactness['largest_logit']:.3g}."
    else:
        verdict = (
            "NOT exact, as expected: the loop does not start from its input (state_init), so that training has to "
            "find the source again."
        )
    return f"{title}{format_table(['case', 'difference'], rows)}\n\n{verdict}"
