"""Accuracy by group and recurrences, halting statistics, and the files that keep them."""

from memreason_hf.evaluation.chains.depth_sweep import DepthSweep, sweep_depth
from memreason_hf.evaluation.chains.halting_statistics import (
    HaltingStatistics,
    RecurrenceStatistics,
    halting_statistics,
)
from memreason_hf.evaluation.chains.predictions import AnswerPredictions, predict_answers
from memreason_hf.evaluation.chains.results import (
    ResultsHeader,
    depth_sweep_results,
    describe_data,
    describe_environment,
    describe_model,
    evaluation_results,
    read_results,
    statistics_from_results,
    sweep_from_results,
    validate_results,
    write_results,
)
from memreason_hf.evaluation.chains.tables import results_table


__all__ = [
    "AnswerPredictions",
    "DepthSweep",
    "HaltingStatistics",
    "RecurrenceStatistics",
    "ResultsHeader",
    "depth_sweep_results",
    "describe_data",
    "describe_environment",
    "describe_model",
    "evaluation_results",
    "halting_statistics",
    "predict_answers",
    "read_results",
    "results_table",
    "statistics_from_results",
    "sweep_depth",
    "sweep_from_results",
    "validate_results",
    "write_results",
]
