"""
Typed steps for questions that have none, written by a language model.

    chat = EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1", concurrency=32)
    report = annotate_questions(rows, chat, "data/own/train.jsonl")
    print(report.describe())
    dataset = load_questions("data/own")
"""

from memreason_hf.annotation.annotator import Annotation, Annotator
from memreason_hf.annotation.checking import StepRules
from memreason_hf.annotation.corpus import Corpus
from memreason_hf.annotation.parsing import AnnotationProblem, parse_knowledge, parse_plan
from memreason_hf.annotation.prompt_texts import PromptTexts
from memreason_hf.annotation.run import AnnotationReport, annotate_questions


__all__ = [
    "Annotation",
    "AnnotationProblem",
    "AnnotationReport",
    "Annotator",
    "Corpus",
    "PromptTexts",
    "StepRules",
    "annotate_questions",
    "parse_knowledge",
    "parse_plan",
]
