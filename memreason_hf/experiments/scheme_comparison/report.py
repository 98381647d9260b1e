"""What `memreason reproduce memory_reason` prints: the table of the comparison, and how to read it."""

from memreason_hf.analysis.comparison_tables import comparison_table
from memreason_hf.experiments.scheme_comparison.results import comparison_rows


def report(results: dict, format: str = "text") -> str:
    """
    The table of the contents of `comparison.json`, and sentences about it.

    Args:
        format: of the table, one of `FORMATS`. Anything but `"text"` is the table alone, for a file.
    """
    table = comparison_table(comparison_rows(results), format)
    if format != "text":
        return table
    schemes = results["schemes"].values()
    seconds = [entry["training"]["seconds"] for entry in schemes]
    invalid = {entry["title"]: entry["measures"]["num_invalid_answers"] for entry in schemes}
    lines = [
        f"\nRight answers on {results['num_items']:,} test questions, after {_steps(schemes)} training steps with "
        f"seed {results['seed']}\n",
        table,
        "",
        "tokens: generated for a question, the end of the text included. Columns of kinds: mean steps of a solution.",
        "The intervals are over questions alone: another seed can move a scheme by more.",
        f"Training took {min(seconds):.0f} to {max(seconds):.0f} s a scheme.",
    ]
    cut = {entry["title"]: entry["num_cut"] for entry in schemes}
    for what, counts in (("without a valid answer", invalid), ("cut off before their end", cut)):
        shown = ", ".join(f"{title} {count:,}" for title, count in counts.items() if count)
        if shown:
            lines.append(f"Solutions {what}: {shown}.")
    return "\n".join(lines)


def _steps(schemes):
    steps = sorted({entry["training"]["steps"] for entry in schemes})
    return f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
