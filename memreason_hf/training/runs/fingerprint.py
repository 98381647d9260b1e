"""What decides the weights of a run: two runs of one fingerprint are the same run."""

from memreason_hf.adapters.model import AdapterModel


_ARGUMENTS = (
    "seed",
    "data_seed",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "mixed_precision",
    "recurrence_loss",
    "recurrence_loss_decay",
    "supervision",
    "length_pool",
    "eval_num_recurrences",
)
# Schedules that do not look ahead: such a run may be given more steps and go on.
_OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
# Of the config: what the library adds, and what it takes over from the tokenizer when training begins.
_IGNORED = ("transformers_version", "architectures", "auto_map", "dtype", "use_cache", "_name_or_path")


def run_fingerprint(trainer) -> dict:
    """
    What decides the weights of `trainer`'s run, flat: the model's config and adapter, the training data, the arguments
    that matter. How often it saves, logs or evaluates does not, nor how many processes share a batch.
    """
    config = trainer.model.config.to_dict()
    fingerprint = {
        f"model.{name}": value
        for name, value in sorted(config.items())
        if name not in _IGNORED and not name.endswith("_token_id")
    }
    if isinstance(trainer.model, AdapterModel):
        fingerprint |= trainer.model.settings()
    args = trainer.args
    arguments = args.to_dict()
    fingerprint |= {
        f"training.{name}": arguments.get(name, getattr(args, name, None))
        for name in _ARGUMENTS
        if hasattr(args, name)
    }
    fingerprint["training.global_batch_size"] = trainer.schedule.batch_size
    if arguments["lr_scheduler_type"] not in _OPEN_ENDED or 0 < args.warmup_steps < 1:
        fingerprint |= {f"training.{name}": arguments[name] for name in ("max_steps", "num_train_epochs")}
    fingerprint["data.train"] = trainer.train_rows.fingerprint()
    return fingerprint
