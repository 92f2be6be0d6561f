"""Data sets: sources, the order of training, batches, augmentation, and storage on the devices."""
