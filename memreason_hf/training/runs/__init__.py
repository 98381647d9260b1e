"""A training run that can be stopped, killed and resumed: trainer, checkpoints, output folder, fingerprint, launch."""
