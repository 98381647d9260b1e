"""Trains and evaluates one scheme in its own process, and keeps the results in its folder."""

import sys
import time
from pathlib import Path

from memreason_hf.adapters.model import rows_in_place
from memreason_hf.analysis.solution_report import measure_solutions
from memreason_hf.data.questions.prompt_arguments import PromptArguments
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.experiments.children import running_child
from memreason_hf.experiments.folders import read_finished
from memreason_hf.experiments.training import train_and_save
from memreason_hf.files import read_json, write_json
from memreason_hf.models.loading import choose_device, load_any_config, load_model, load_tokenizer
from memreason_hf.steps.tokenization import read_scheme
from memreason_hf.training.runs.checkpoints import list_checkpoints
from memreason_hf.training.solutions.arguments import FinetuneArguments
from memreason_hf.training.solutions.questions import QuestionArguments, open_questions
from memreason_hf.training.solutions.recipe import choose_prompts, prepare_finetuning


TRAINING_FILE, RESULTS_FILE = "training.json", "results.json"
SOLUTIONS_FILE, LOG_FILE, TASK_FILE = "solutions.jsonl", "log.txt", "task.json"


def run_scheme(folder: Path, sections: dict[str, dict], num_items: int) -> dict:
    """
    Trains a scheme and solves test questions with it. What `folder` already holds is not repeated.

    Args:
        folder: of this scheme.
        sections: the sections of a fine-tuning recipe; `training` without its folder.
        num_items: test questions, the first ones of the split.

    Returns:
        The contents of `results.json`.
    """
    args = FinetuneArguments(output_dir=str(folder), **sections["training"])
    training = read_finished(folder / TRAINING_FILE)
    if training is None:
        training = _train(folder, args, sections)
    results = {"training": training, **_evaluate(folder, args, sections, num_items)}
    write_json(folder / RESULTS_FILE, results)
    return results


def read_scheme_results(folder: Path) -> dict | None:
    """The results that `run_scheme` left in a folder; None if it has not finished."""
    return read_finished(folder / RESULTS_FILE)


def _train(folder, args, sections):
    started = time.perf_counter()
    parts = {name: values for name, values in sections.items() if name != "training"}
    trainer, report = prepare_finetuning(args, **parts)
    print(report.describe(), flush=True)
    training = train_and_save(trainer, True if list_checkpoints(folder) else None)
    trainer.save_state()
    trained = [parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad]
    training |= {
        "seconds": time.perf_counter() - started,
        "num_trained": sum(trained),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry or "eval_acc" in entry],
    }
    trainer.end()
    write_json(folder / TRAINING_FILE, training)
    return training


def _evaluate(folder, args, sections, num_items):
    started = time.perf_counter()
    questions = QuestionArguments(**sections["data"])
    train, test = open_questions(questions)
    rows = [test[index] for index in range(min(num_items, len(test)))]
    config = load_any_config(str(folder))
    tokenizer = load_tokenizer(str(folder), None, config)
    # The prompt that the model was trained with is saved with its tokenizer.
    prompts = PromptArguments(**sections.get("prompt", {}))
    demonstrations = choose_prompts(tokenizer, prompts, questions, train, args.seed)
    # An adapter is not merged into its base, which would round it.
    model = load_model(str(folder), merge=False).to(choose_device("cpu" if args.use_cpu else None))
    depth = {} if args.eval_num_recurrences is None else {"num_recurrences": args.eval_num_recurrences}
    with rows_in_place(model):
        generations = generate_solutions(
            model,
            tokenizer,
            rows,
            batch_size=args.per_device_eval_batch_size,
            max_new_tokens=args.max_new_tokens,
            demonstrations=demonstrations,
            path=str(folder / SOLUTIONS_FILE),
            settings={"seed": args.seed, "max_new_tokens": args.max_new_tokens, **depth},
            **depth,
        )
    judged = {"match_option_text": False, "judge": "overlap", "seed": args.seed}
    measures = measure_solutions(generations, rows, read_scheme(tokenizer), **judged)
    measures.pop("attributions")
    return {
        "measures": measures,
        "num_tokens": sum(generation.num_tokens for generation in generations),
        "num_cut": sum(generation.is_cut for generation in generations),
        "seconds": time.perf_counter() - started,
    }


def main(argv: list[str] | None = None) -> int:
    """Runs one scheme: a JSON file with `folder`, `sections`, `num_items` and `threads`."""
    (task,) = sys.argv[1:] if argv is None else argv
    task = read_json(task)
    with running_child(task["folder"], threads=task["threads"]):
        run_scheme(Path(task["folder"]), task["sections"], task["num_items"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
