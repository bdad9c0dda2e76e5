"""Training: steps and epochs of an optimizer, the order of examples, and how good the result is."""
