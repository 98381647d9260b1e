"""How a card shows where an exit gate comes from."""

from memreason_hf.halting.gate_results import describe_gate
from memreason_hf.hub.cards.results import ResultsSection, register_section


def _exit_gate(document):
    text = "Choose its threshold on other data, for example with `memreason calibrate --halting_criterion exit_gate`."
    return ResultsSection("Exit gate", [describe_gate(document), text])


register_section("exit_gate", _exit_gate)
