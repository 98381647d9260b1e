"""The results files of a small model over chains, with a picture."""

from memreason_hf.evaluation import (
    ResultsHeader,
    depth_sweep_results,
    describe_data,
    describe_environment,
    describe_model,
    evaluation_results,
    halting_statistics,
    predict_answers,
    sweep_depth,
    write_results,
)


MOST = 6
SETTINGS = {
    "num_recurrences": None,
    "halting_criterion": "kl",
    "halting_granularity": "sequence",
    "min_recurrences": 1,
    "max_recurrences": MOST,
    "parameters": {"kl_threshold": 0.01},
    "batch_size": 16,
}


def save_chain_results(model, rows, collator, folder):
    """Writes evaluation.json, depth_sweep.json and a file in place of the picture."""
    header = ResultsHeader(
        model=describe_model(model, "/home/somebody/runs/chains", trained_hops=4),
        data=describe_data("/home/somebody/data/small_world", "test_small", len(rows)),
        environment=describe_environment("cpu"),
    )
    halting = {name: SETTINGS[name] for name in ("halting_criterion", "halting_granularity", "max_recurrences")}
    answers = predict_answers(model, rows, collator, batch_size=16, kl_threshold=0.01, **halting)
    sweep = sweep_depth(model, rows, collator, max_recurrences=MOST, batch_size=16)
    folder.mkdir()
    evaluation = evaluation_results(halting_statistics(answers), header, SETTINGS, 1.5, sweep)
    write_results(folder / "evaluation.json", evaluation)
    write_results(folder / "depth_sweep.json", depth_sweep_results(sweep, header, 16))
    (folder / "depth_sweep.png").write_bytes(b"\x89PNG\r\n\x1a\n")
