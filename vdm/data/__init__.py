"""Images in: sources, the order of training, batches, augmentation, and what is kept on the devices."""
