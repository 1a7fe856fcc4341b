"""TFDS builders, one file per data set; each imports tensorflow_datasets, so import them late."""
