"""Accuracy by group and recurrence, halting statistics, and results files."""

from memreason_hf.evaluation.chains.depth_sweep import DepthSweep, sweep_depth
from memreason_hf.evaluation.chains.halting_statistics import (
    HaltingStatistics,
    RecurrenceStatistics,
    halting_statistics,
)
from memreason_hf.evaluation.chains.predictions import AnswerPredictions, predict_answers
from memreason_hf.evaluation.chains.results import depth_sweep_results, evaluation_results, statistics_from_results
from memreason_hf.evaluation.chains.tables import results_table
from memreason_hf.evaluation.results import (
    ResultsHeader,
    describe_data,
    describe_environment,
    describe_model,
    read_results,
    register_kind,
    results_schema,
    validate_results,
    write_results,
)


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
    "register_kind",
    "results_schema",
    "results_table",
    "statistics_from_results",
    "sweep_depth",
    "validate_results",
    "write_results",
]
