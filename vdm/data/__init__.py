"""Data sets: sources, the order of training images, batches, augmentation, and storage on the devices."""
