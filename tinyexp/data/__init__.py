"""From a data set to batches: sources -> augment -> plan -> loader."""
