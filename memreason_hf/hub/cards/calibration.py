"""How a card shows the calibration of a halting threshold."""

from memreason_hf.halting.results import describe_promise
from memreason_hf.hub.cards.markdown import number, percent, plain, table
from memreason_hf.hub.cards.results import ResultsSection, register_section


def _calibration(document):
    chosen, naive, promise = document["chosen"], document["naive"], document["promise"]
    pictures = {"calibration.png": "What halting loses, by recurrences"}
    if chosen is None:
        text = f"No threshold was found for which the rows show a loss of at most {number(promise['risk'])}."
        return ResultsSection("Calibrated halting", [text], pictures)

    def amount(loss):
        return f"{loss:.4f} nats" if promise["unit"] == "nats" else percent(loss)

    def row(name, one):
        taken = "-" if one["recurrences"] is None else f"{one['recurrences']:.2f}"
        return [name, plain(one["criterion"]), f"{one['threshold']:.6g}", amount(one["loss"]), taken]

    rows = [row("chosen, with the guarantee", chosen)]
    if naive is not None:
        rows.append(row("naive, without one", naive))
    lines = [describe_promise(document), table(["", "criterion", "threshold", "loss", "mean recurrences"], rows)]
    if document["groups"]:
        header = ["group", "rows", "loss", "mean recurrences"]
        groups = [
            [
                plain(group["group"]),
                number(group["num_rows"]),
                amount(group["loss"]),
                "-" if group["recurrences"] is None else f"{group['recurrences']:.2f}",
            ]
            for group in document["groups"]
        ]
        lines.append(table(header, groups))
    if (repeated := document["repetitions"]) is not None:
        lines.append(
            f"In {number(repeated['repetitions'])} repetitions on draws of {number(repeated['num_rows'])} rows, the "
            f"promise was kept in {percent(repeated['kept'])}, and by naive thresholds in "
            f"{percent(repeated['naive_kept'])}."
        )
    return ResultsSection("Calibrated halting", lines, pictures)


register_section("calibration", _calibration)
